// What was found, as rows: volumes of labels, probabilities of classes, or boxes.
import type { Finding } from "./api";
import { colourOf } from "./viewer";

export interface Choices {
  onVisible: (label: number, visible: boolean) => void;
  onLabel: (label: number) => void;
  onBox: (center: [number, number, number]) => void;
}

export function title(finding: Finding): string {
  if (finding.boxes) return finding.boxes.length === 1 ? "1 lesion" : `${finding.boxes.length || "No"} lesions`;
  return finding.probabilities ? "Classes" : "Volumes";
}

export function table(finding: Finding, choices: Choices): HTMLElement {
  if (finding.labels) return volumes(finding.labels, choices);
  if (finding.boxes) return boxes(finding, choices);
  return probabilities(finding.probabilities ?? {});
}

/** Everything worth a line about where the numbers come from. */
export function notes(finding: Finding): string[] {
  const unsure = finding.calibrated === false ? ["Probabilities are not calibrated."] : [];
  return [...unsure, ...finding.notes];
}

/** A number as people read it: three digits that matter. */
export function millilitres(volume: number): string {
  return volume >= 100 ? Math.round(volume).toLocaleString("en") : String(Number(volume.toPrecision(3)));
}

function volumes(labels: NonNullable<Finding["labels"]>, choices: Choices): HTMLElement {
  const rows = Object.entries(labels).map(([name, { voxels, volume_ml }], index) => {
    const label = index + 1;
    const go = button(name, () => choices.onLabel(label));
    go.disabled = voxels === 0;
    go.title = voxels ? `Go to ${name}` : `No ${name} found`;
    return [swatch(label, name, choices), go, voxels ? millilitres(volume_ml) : "none"];
  });
  return rowsOf(["", "Label", "ml"], rows);
}

function boxes(finding: Finding, choices: Choices): HTMLElement {
  const found = finding.boxes ?? [];
  if (!found.length) return element("p", {}, "Nothing was found that the model knows.");
  return rowsOf(
    ["", "Lesion", "mm", "Probability"],
    found.map((box, index) => {
      const name = `${box.label} ${index + 1}`;
      return [
        swatch(index + 1, name, choices),
        button(name, () => choices.onBox(box.center_lps_mm)),
        String(Math.round(Math.max(...box.size_mm))),
        percent(box.probability),
      ];
    }),
  );
}

/** A checkbox in the colour of a label, which shows and hides it. */
function swatch(label: number, name: string, choices: Choices): HTMLElement {
  const shown = element("input", { type: "checkbox", checked: true, ariaLabel: `Show ${name}` });
  shown.style.accentColor = `rgb(${colourOf(label).join(" ")})`;
  shown.addEventListener("change", () => choices.onVisible(label, shown.checked));
  return element("span", { className: "swatch" }, shown);
}

function probabilities(classes: Record<string, number>): HTMLElement {
  const sorted = Object.entries(classes).sort(([, a], [, b]) => b - a);
  return rowsOf(
    ["Class", "Probability"],
    sorted.map(([name, value]) => {
      const bar = element("meter", { min: 0, max: 1, value });
      return [name, element("span", {}, bar, percent(value))];
    }),
  );
}

function rowsOf(heads: string[], rows: (string | HTMLElement)[][]): HTMLElement {
  const isNumber = (column: number) => column > 0 && column === heads.length - 1 ? "number" : "";
  const head = element("tr", {}, ...heads.map((text, n) => element(text ? "th" : "td", { className: isNumber(n) }, text)));
  const body = rows.map((row) =>
    element("tr", {}, ...row.map((cell, n) => element("td", { className: isNumber(n) }, cell))),
  );
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
}

function button(text: string, onClick: () => void): HTMLButtonElement {
  const made = element("button", { className: "quiet", type: "button" }, text);
  made.addEventListener("click", onClick);
  return made;
}

function percent(value: number): string {
  return `${(100 * value).toFixed(1)} %`;
}

/** An element with properties and children; text stays text. */
export function element<K extends keyof HTMLElementTagNameMap>(
  name: K,
  properties: Partial<HTMLElementTagNameMap[K]> = {},
  ...children: (string | Node)[]
): HTMLElementTagNameMap[K] {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}
