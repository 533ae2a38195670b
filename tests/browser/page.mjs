// Opens the demo's page in headless Chromium and checks that it is live. usage: node page.mjs URL [SCREENSHOT]
import { createRequire } from "node:module";
import { join } from "node:path";

const require = createRequire(join(process.env.TRIBUTARY_BROWSER ?? ".", "package.json"));
const { chromium } = require("playwright-core");
const [url, screenshot] = process.argv.slice(2);

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
try {
  const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
  const problems = [];
  page.on("pageerror", (error) => problems.push(String(error)));
  page.on("requestfailed", (request) => { if (!request.url().includes("/v1/changes")) problems.push(`${request.url()}: ${request.failure()?.errorText}`); });
  page.on("request", (request) => { if (!request.url().startsWith(url) && !request.url().startsWith("data:")) problems.push(`outside: ${request.url()}`); });
  await page.goto(url);
  // Changes arrive by themselves …
  await page.waitForFunction(() => document.querySelectorAll('[data-testid="change"]').length >= 3, null, { timeout: 30000 });
  // … the frontier is shown and moves on …
  const frontier = () => page.textContent('[data-testid="lsn"]');
  const first = await frontier();
  await page.waitForFunction((first) => document.querySelector('[data-testid="lsn"]').textContent !== first, first, { timeout: 30000 });
  // … and an entity can be looked up.
  await page.selectOption('[data-testid="lookup-entity"]', "customer");
  await page.fill('[data-testid="lookup-key"]', "1");
  await page.press('[data-testid="lookup-key"]', "Enter");
  await page.waitForFunction(() => document.querySelector('[data-testid="document"]').textContent.includes("c1@example.com"), null, { timeout: 30000 });
  if (screenshot) await page.screenshot({ path: screenshot });
  if (problems.length > 0) throw new Error(problems.join("\n"));
  console.log("the page is live");
} finally {
  await browser.close();
}
