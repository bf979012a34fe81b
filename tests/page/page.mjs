// Looks at the page of the fleet as people do: by roles and names, in light and dark, with the keyboard.
// Usage: page.mjs URL, started by main.rs; see browser.mjs for its environment.
import assert from "node:assert/strict";
import { browser, node, openPage, picture, problems, run, scene } from "./browser.mjs";

const NODE = "ip-10-0-1-10.ec2.internal";
const NEW = "ip-10-0-9-9.ec2.internal";
const open = openPage;

const tests = {
  async "nodes and NodePools are found by their names"() {
    const { page } = await open();
    await page.getByRole("heading", { name: "Fleet", level: 1 }).waitFor();
    await node(page, NODE).waitFor();
    await page.getByRole("region", { name: "NodePool general" }).getByRole("heading", { name: /NodePool general 1 node/ }).waitFor();
    await page.getByText("Live", { exact: true }).waitFor();
    await page.getByRole("img", { name: "Cost per hour over the last day" }).waitFor();
    await page.getByRole("row", { name: /launched general-7xk2p general m7i.large/ }).waitFor();
    await page.getByRole("row", { name: /general underutilized 0.4034 5.2100/ }).waitFor();
    assert.ok(await page.locator("#cost .up").count() > 1 && await page.locator("#cost .down").count() > 1, "dots of decisions");
    await page.close();
  },
  async "a pending pod's reasons and what would help are read"() {
    const { page } = await open();
    const pods = page.getByRole("region", { name: "Pending pods" });
    await pods.getByText("shop/warehouse").waitFor();
    const text = await pods.innerText();
    for (const part of ["fits nowhere", "general (instanceTypes)", "no instance type has enough resources", "Would help: ", "batch (taints)"])
      assert.ok(text.includes(part), part + " in " + text);
    await page.close();
  },
  async "a node appears and goes, and what is open stays open"() {
    const { page } = await open();
    await node(page, NODE).waitFor();
    const general = page.getByRole("region", { name: "NodePool general" });
    await general.getByText("Limits, budgets and launches").click();
    await general.getByRole("cell", { name: "Underutilized" }).waitFor();
    await general.getByRole("cell", { name: "InsufficientCapacityError: no spot <b>anywhere</b>" }).waitFor();
    await general.getByText("last launch failed: InsufficientCapacityError").waitFor();
    await node(page, NODE).focus();
    scene("launching");
    await node(page, NEW).waitFor();
    assert.match(await node(page, NEW).getAttribute("aria-label"), /, Launching, /);
    assert.ok(await general.getByRole("cell", { name: "Underutilized" }).isVisible(), "details stay open");
    assert.match(await page.evaluate(() => document.activeElement.getAttribute("aria-label")), new RegExp("^" + NODE), "focus stays");
    scene("gone");
    await node(page, NEW).waitFor({ state: "detached" });
    await page.close();
  },
  async "the keyboard alone reaches a node, its verdicts, and comes back"() {
    scene("launching");
    const { page } = await open({ colorScheme: "dark" });
    await node(page, NEW).waitFor();
    await page.getByRole("searchbox", { name: "Find nodes" }).focus();
    for (let stops = 0; stops < 12 && !(await page.evaluate(() => document.activeElement.matches(".nodes button"))); stops++) await page.keyboard.press("Tab");
    await page.keyboard.press("End");
    const label = () => page.evaluate(() => document.activeElement.getAttribute("aria-label"));
    assert.match(await label(), new RegExp("^" + NEW));
    await page.keyboard.press("ArrowLeft");
    assert.match(await label(), new RegExp("^" + NODE));
    await page.keyboard.press("Enter");
    const dialog = page.getByRole("dialog", { name: "Node " + NODE });
    await dialog.waitFor();
    await dialog.getByRole("cell", { name: "can't replace with a cheaper node <b>bold</b>" }).waitFor();
    await dialog.getByRole("cell", { name: "2026-11-29 12:30 UTC" }).waitFor();
    assert.equal(await page.locator("b").count(), 0, "texts are never markup");
    await page.keyboard.press("Escape");
    await dialog.waitFor({ state: "hidden" });
    assert.match(await label(), new RegExp("^" + NODE), "focus comes back");
    scene("gone");
    await page.close();
  },
  async "light and dark both have readable contrast"() {
    for (const colorScheme of ["light", "dark"]) {
      const { page } = await open({ colorScheme });
      await node(page, NODE).waitFor();
      const worst = await page.evaluate(() => {
        const channel = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        const light = color => { const [r, g, b] = color.match(/[\d.]+/g).map(Number); return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b); };
        const behind = element => { for (let e = element; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (!/, 0\)$|transparent/.test(c)) return c; } return "rgb(255, 255, 255)"; };
        const ratios = [...document.querySelectorAll("h1, h2, h3, p, dt, dd, td, th, summary, .soft, .bad, .state, label, .nodes button span")]
          .filter(e => e.textContent.trim() && e.checkVisibility())
          .map(e => { const [a, b] = [light(getComputedStyle(e).color), light(behind(e))]; return { text: e.textContent.slice(0, 40), ratio: (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) }; });
        return ratios.reduce((a, b) => a.ratio < b.ratio ? a : b);
      });
      assert.ok(worst.ratio >= 4.5, colorScheme + ": " + JSON.stringify(worst));
      await page.close();
    }
  },
  async "5,000 nodes are shown, searched and updated without delay"() {
    scene("many");
    const { page } = await open();
    const start = Date.now();
    await page.waitForFunction(() => document.querySelectorAll("[data-node]").length === 5000);
    const shown = Date.now() - start;
    await page.getByRole("heading", { name: "Nodes", exact: true }).evaluate(h => scrollTo(0, h.offsetTop - 70));
    await picture(page, "fleet-5000");
    const find = page.getByRole("searchbox", { name: "Find nodes" });
    const searched = await page.evaluate(async () => {
      const from = performance.now();
      const input = document.getElementById("find");
      input.value = "spot notready";
      input.dispatchEvent(new Event("input", { bubbles: true }));
      while (!document.getElementById("found").textContent) await new Promise(done => setTimeout(done, 5));
      return performance.now() - from;
    });
    await page.getByText(/^\d+ nodes found$/).waitFor();
    assert.ok(await page.locator("[data-node]:visible").count() > 0);
    await find.fill("");
    const stops = await page.locator(".nodes [tabindex='0']").count();
    assert.ok(stops <= 3, stops + " stops of the Tab key for all nodes");
    await page.getByRole("combobox", { name: "Order" }).selectOption("price");
    const updated = await page.evaluate(async () => { const from = performance.now(); dirty = true; render(); return performance.now() - from; });
    console.log(`5,000 nodes: shown after ${shown} ms, searched in ${Math.round(searched)} ms, an update takes ${Math.round(updated)} ms`);
    assert.ok(shown < 20000 && searched < 5000 && updated < 2000, "see the line above");
    scene("gone");
    await page.close();
  },
  async "a fleet without pending pods and without nodes of a NodePool says so"() {
    scene("idle");
    const { page } = await open();
    await node(page, NODE).waitFor();
    await page.getByRole("region", { name: "Pending pods" }).getByText("None", { exact: true }).waitFor();
    await page.getByRole("region", { name: "NodePool batch" }).getByRole("heading", { name: /0 nodes/ }).waitFor();
    scene("gone");
    await page.close();
  },
  async "a narrow window needs no scrolling sideways"() {
    scene("day");
    const { page } = await open({ viewport: { width: 390, height: 800 } });
    await node(page, NODE).waitFor();
    const [inside, window] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
    assert.ok(inside <= window, inside + " of " + window);
    await page.close();
  },
  async "pictures of a day's fleet"() {
    scene("day");
    for (const colorScheme of ["light", "dark"]) {
      const { page } = await open({ colorScheme, deviceScaleFactor: 1.5, viewport: { width: 1280, height: 1240 } });
      await page.waitForFunction(() => document.querySelectorAll("[data-node]").length === 46);
      await page.getByRole("row", { name: /launched general-7xk2p/ }).waitFor();
      await page.getByText("by decisions of the last 24 hours").waitFor();
      await picture(page, "fleet-" + colorScheme);
      await page.getByRole("region", { name: "Last day" }).scrollIntoViewIfNeeded();
      if (colorScheme === "light") await picture(page.getByRole("region", { name: "Last day" }), "fleet-day");
      await node(page, NODE).click();
      await page.getByRole("dialog", { name: "Node " + NODE }).waitFor();
      if (colorScheme === "dark") await picture(page.getByRole("dialog"), "fleet-node");
      await page.keyboard.press("Escape");
      await page.close();
    }
    scene("gone");
  },
  async "the policy lets nothing but the page's own script run"() {
    const { page, answer } = await open();
    const headers = answer.headers();
    assert.match(headers["content-security-policy"], /default-src 'none'/);
    assert.equal(headers["set-cookie"], undefined);
    await node(page, NODE).waitFor();
    assert.deepEqual(problems, [], "errors of the page itself");
    const ran = await page.evaluate(async () => {
      const script = document.createElement("script");
      script.textContent = "window.ran = true";
      document.body.append(script);
      const frame = document.createElement("iframe");
      frame.src = "data:text/html,x";
      document.body.append(frame);
      await new Promise(done => setTimeout(done, 200));
      return window.ran === true;
    });
    assert.equal(ran, false, "an added script runs");
    assert.ok(problems.some(p => p.includes("Content Security Policy")), problems.join("\n"));
    problems.length = 0;
    await page.close();
  },
};

await run(tests);
