// What the tests of the page drive Chromium with. PAGE_MODULES holds node_modules with playwright-core, CHROMIUM is
// the browser, SCREENSHOTS a folder for pictures (none are taken without it).
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import path from "node:path";

const require = createRequire(path.join(process.env.PAGE_MODULES ?? process.cwd(), "page.mjs"));
const { chromium } = require("playwright-core");
const url = process.argv[2];

// Asks the test that started this to change what the page shows.
export const scene = name => console.log("scene " + name);

// Chromium on a machine without a sandbox of its own, and without calls to its maker.
export const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});

// Errors of the page, and requests that go elsewhere.
export const problems = [];

export async function openPage(options = {}) {
  const page = await browser.newPage({ viewport: { width: 1280, height: 1000 }, ...options });
  page.on("console", message => { if (["error", "warning"].includes(message.type())) problems.push(message.text()); });
  page.on("pageerror", error => problems.push(String(error)));
  page.on("request", request => { if (!request.url().startsWith(url) && !request.url().startsWith("data:")) problems.push("asks " + request.url()); });
  const answer = await page.goto(url);
  return { page, answer };
}

export const picture = async (page, name, options = {}) => {
  if (process.env.SCREENSHOTS) await page.screenshot({ path: path.join(process.env.SCREENSHOTS, name + ".png"), ...options });
};

export const node = (page, name) => page.getByRole("button", { name: new RegExp("^" + name.replaceAll(".", "\\.") + ", ") });

// Runs tests one after another; the exit code says whether all passed.
export async function run(tests) {
  let failed = 0;
  for (const [name, test] of Object.entries(tests)) {
    try {
      await test();
      assert.deepEqual(problems, [], "errors on the console");
      console.log("ok   " + name);
    } catch (error) {
      failed += 1;
      console.log("FAIL " + name + "\n" + (error.stack ?? error));
      scene("gone");
      problems.length = 0;
    }
  }
  await browser.close();
  process.exitCode = failed ? 1 : 0;
}
