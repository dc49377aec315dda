// Bundle src/main.tsx into the package: `npm ci && npm run build`. The output depends on nothing
// but the sources and package-lock.json, so that it can be compared with what is committed.
// package.json holds d3's modules at the versions that come as single files: of the newer bundles
// esbuild takes parts that nothing calls.
import { readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const out = process.argv[2] ?? join(here, "../src/microgpt/explainer");

const result = await build({
  absWorkingDir: here,
  entryPoints: ["src/main.tsx"],
  outfile: join(out, "page.js"),
  bundle: true,
  minify: true,
  charset: "ascii",
  format: "iife",
  target: "es2022",
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "none",
  metafile: true,
  logLevel: "warning",
});

const packages = new Set();
for (const path of Object.keys(result.metafile.inputs)) {
  const name = /node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path)?.[1];
  if (name) packages.add(name);
}
const licences = [...packages].sort().map((name) => {
  const folder = join(here, "node_modules", name);
  const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  return `${name} ${version} (${license})\n\n${readFileSync(join(folder, "LICENSE"), "utf8").trim()}\n`;
});
writeFileSync(
  join(out, "LICENSES.txt"),
  `page.js contains these libraries.\n\n${licences.join(`\n${"-".repeat(72)}\n\n`)}`,
);
