// Follows a node of the local world from its launch to its end on the controller's own page.
// Usage: world.mjs URL, started by an end-to-end test that deploys what is asked for; see browser.mjs.
import assert from "node:assert/strict";
import { openPage, problems, run, scene } from "./browser.mjs";

await run({
  async "a pending pod's reason is read, a node appears and goes"() {
    const { page } = await openPage();
    page.setDefaultTimeout(180000);
    await page.getByText("Live", { exact: true }).waitFor();
    const pool = page.getByRole("region", { name: "NodePool default" });
    await pool.getByRole("heading", { name: /0 nodes/ }).waitFor();

    scene("huge");
    const pods = page.getByRole("region", { name: "Pending pods" });
    const huge = pods.getByRole("group").filter({ hasText: "default/huge" });
    await huge.getByText("fits nowhere").waitFor();
    assert.match(await huge.innerText(), /no instance type has enough resources/);
    assert.match(await huge.innerText(), /cpu\s[\s\S]* of 500/);

    scene("web");
    const node = pool.getByRole("button", { name: /, Ready, / });
    await node.waitFor();
    await node.click();
    const dialog = page.getByRole("dialog");
    await dialog.getByText("NodeClaim").waitFor();
    await page.keyboard.press("Escape");
    await page.getByRole("row", { name: /launched/ }).first().waitFor();

    scene("nothing");
    await node.waitFor({ state: "detached" });
    await pods.getByText("None", { exact: true }).waitFor();
    await page.getByRole("row", { name: /deleted .*Empty/ }).first().waitFor();
    assert.deepEqual(problems, []);
    await page.close();
  },
});
