// The page: which of its views is there, and what leads from one to the next.
import * as api from "./api";
import { MOST_BOXES, outlines } from "./boxes";
import { element, notes, table, title } from "./findings";
import { dropped, packedType, zip, type Study } from "./study";
import { PLANES, Viewer, WINDOWS, type Over, type PlaneName, type WindowName } from "./viewer";

const VIEWS = ["sign-in", "drop", "work", "problem", "result"] as const;
const STEPS = ["pack", "send", "wait", "look", "show"] as const;
const EXPLAINED = {
  segment: { explain: "uncertainty", ask: "Also map where the model is unsure (takes longer)", show: "Uncertainty" },
  classify: { explain: "gradcam", ask: "Also map what the answer rests on (takes longer)", show: "What it rests on" },
  detect: null,
} as const;
const DOWNLOADS = {
  "DICOM SEG": { type: api.TYPES.seg, file: "segmentation.dcm", of: ["segment"] },
  "DICOM SR": { type: api.TYPES.sr, file: "measurements.dcm", of: ["segment", "classify", "detect"] },
  NIfTI: { type: api.TYPES.nifti, file: "segmentation.nii.gz", of: ["segment"] },
  JSON: { type: api.TYPES.json, file: "finding.json", of: ["segment", "classify", "detect"] },
};

const viewer = new Viewer();
let known: api.Model[] = [];
let work = new AbortController();
let again: () => void = restart;

function by<T extends HTMLElement>(id: string): T {
  return document.getElementById(id) as T;
}

function show(view: (typeof VIEWS)[number]): void {
  for (const each of VIEWS) by(each).hidden = each !== view;
  by("help").hidden = view !== "result";
  const heading = by(view).querySelector("h1")!;
  document.title = `${heading.textContent} – TomoRay`;
  heading.focus(); // a screen reader says what is there now
}

/** Show what stopped this; `retry` is what to do again. */
function fail(error: unknown, retry: () => void): void {
  if (work.signal.aborted && error === work.signal.reason) return restart();
  const { status, code, message } =
    error instanceof api.Problem ? error : new api.Problem(0, "page", `This page failed: ${String(error)}`);
  if (status === 401) return signIn("The server does not know this token.");
  by("problem-title").textContent = TITLES[status] ?? "That did not work";
  by("problem-text").textContent = message;
  by("problem-code").textContent = code;
  again = retry;
  by("retry").hidden = status === 422 || status === 413; // the same study would be refused again
  show("problem");
}

const NO_MODEL = "This token may ask no model of this server. Its operator can make one that may: the scope is infer.";
const TITLES: Record<number, string> = {
  0: "No answer",
  403: "Not for this token",
  413: "Too large",
  422: "This study is refused",
  429: "The server is busy",
  503: "The server is busy",
};

// ------------------------------------------------------------------ start

async function start(): Promise<void> {
  work = new AbortController();
  try {
    known = await api.models();
  } catch (error) {
    if (error instanceof api.Problem && error.status === 401) {
      return signIn(api.token.get() ? "The server does not know this token." : null);
    }
    return fail(error, () => void start());
  }
  by("sign-out").hidden = api.token.get() === null;
  if (!known.length) return fail(new api.Problem(403, "no_model", NO_MODEL), () => void start());
  const choice = by<HTMLSelectElement>("model");
  const chosen = choice.value;
  choice.replaceChildren(...known.map(({ name }) => element("option", { value: name, selected: name === chosen }, name)));
  offerExplanation();
  const job = new URLSearchParams(location.hash.slice(1)).get("job");
  if (job) return watch(job);
  show("drop");
}

function restart(): void {
  work.abort();
  history.replaceState(null, "", location.pathname + location.search);
  viewer.clear();
  void start();
}

function signIn(reason: string | null): void {
  by("sign-out").hidden = true;
  by("sign-in-error").hidden = reason === null;
  by("sign-in-error").textContent = reason;
  show("sign-in");
  by("token").focus();
}

function model(): api.Model {
  return known.find(({ name }) => name === by<HTMLSelectElement>("model").value) ?? known[0]!;
}

function offerExplanation(): void {
  const offered = EXPLAINED[model().operation];
  by("explain-choice").hidden = offered === null;
  by("explain-choice").querySelector("span")!.textContent = offered?.ask ?? "";
}

// ------------------------------------------------------------------ work

function step(current: (typeof STEPS)[number], done?: number, text = ""): void {
  const at = STEPS.indexOf(current);
  STEPS.forEach((name, index) => {
    const item = document.querySelector(`[data-step=${name}]`)!;
    item.classList.toggle("done", index < at);
    if (index === at) item.setAttribute("aria-current", "step");
    else item.removeAttribute("aria-current");
  });
  const bar = by<HTMLProgressElement>("progress");
  if (done === undefined) bar.removeAttribute("value");
  else bar.value = done;
  by("work-text").textContent = text;
}

async function send(study: Study): Promise<void> {
  if (!study.files.length) {
    return fail(new api.Problem(0, "empty", "There is no file in it. Drop a folder of DICOM files, or a zip."), restart);
  }
  work = new AbortController();
  const { signal } = work;
  const chosen = model();
  const key = crypto.randomUUID(); // sent again after a lost connection, it is the same job
  const attempt = async (): Promise<void> => {
    try {
      step("pack", 0);
      show("work");
      const packed = packedType(study);
      const body = packed
        ? study.files[0]!
        : await zip(study, signal, (done) => step("pack", done, `${study.files.length} files`));
      const explain = by<HTMLInputElement>("explain").checked ? (EXPLAINED[chosen.operation]?.explain ?? null) : null;
      const size = `${(body.size / 1e6).toFixed(1)} MB`;
      step("send", 0, size);
      const ask = { model: chosen, explain, body, contentType: packed ?? "application/zip" };
      const job = await api.submit(ask, key, signal, (done) => step("send", done, size));
      history.replaceState(null, "", `#job=${job.id}`);
      await watch(job.id);
    } catch (error) {
      fail(error, () => void attempt());
    }
  };
  await attempt();
}

async function watch(id: string): Promise<void> {
  try {
    step("wait");
    show("work");
    for await (const job of api.follow(id, work.signal)) {
      work.signal.throwIfAborted();
      const { done, of } = job.progress;
      if (job.state === "queued") step("wait");
      if (job.state === "running") step("look", of ? done / of : undefined, of ? `${done} of ${of} windows` : "");
      if (job.state === "done") await showResult(job);
      if (job.state === "cancelled") restart();
      if (job.state === "failed") throw new api.Problem(422, job.error?.code ?? "failed", job.error?.message ?? "");
    }
  } catch (error) {
    fail(error, () => void watch(id));
  }
}

async function cancel(): Promise<void> {
  const job = new URLSearchParams(location.hash.slice(1)).get("job");
  work.abort();
  if (job) await api.cancel(job).catch(() => {}); // over already, or gone: nothing is left to cancel
  restart();
}

// ------------------------------------------------------------------ result

async function showResult(job: api.Job): Promise<void> {
  step("show");
  const finding = await api.finding(job.id);
  const [image, mask, map] = await Promise.all([
    api.image(job.id),
    finding.labels ? api.resultFile(job.id, api.TYPES.nifti) : null,
    api.resultFile(job.id, api.TYPES.map).catch(() => null), // none was asked for
  ]);
  work.signal.throwIfAborted();
  describe(job, finding);
  show("result"); // before drawing: a canvas that is hidden has no size
  const boxes = finding.boxes?.length ?? 0;
  const over: Over = boxes ? (scan) => outlines(scan, finding) : mask;
  await viewer.show(image, over, map, Math.min(boxes, MOST_BOXES) || Object.keys(finding.labels ?? {}).length);
  by("overlays").hidden = !over && !map;
  by("opacity").parentElement!.hidden = !over;
  by("opacity-of").textContent = boxes ? "Boxes" : "Mask";
  by("map-choice").hidden = !map;
  by("map-choice").querySelector("span")!.textContent = EXPLAINED[job.operation]?.show ?? "";
  choose("windows", Object.keys(WINDOWS)[0]!);
  choose("planes", Object.keys(PLANES)[0]!);
  viewer.goToLabel(smallest(finding));
  if (finding.boxes?.[0]) viewer.goToLps(finding.boxes[0].center_lps_mm);
}

/** The number of the label that is hardest to find by scrolling: it is shown first. */
function smallest(finding: api.Finding): number {
  const volumes = Object.values(finding.labels ?? {}).map(({ voxels }) => voxels || Infinity);
  return volumes.indexOf(Math.min(...volumes)) + 1;
}

function describe(job: api.Job, finding: api.Finding): void {
  by("found-title").textContent = title(finding);
  by("table").replaceChildren(
    table(finding, {
      onVisible: (label, visible) => viewer.setVisible(label, visible),
      onLabel: (label) => viewer.goToLabel(label),
      onBox: (center) => viewer.goToLps(center),
    }),
  );
  const said = notes(finding);
  by("notes").hidden = !said.length;
  by("notes").replaceChildren(...said.map((note) => element("li", {}, note)));
  by("downloads").replaceChildren(
    ...Object.entries(DOWNLOADS)
      .filter(([, { of }]) => of.includes(job.operation))
      .map(([name, { type, file }]) => {
        const made = element("button", {}, name);
        made.addEventListener("click", () => void download(made, job.id, type, file));
        return made;
      }),
  );
  const { shape_zyx, spacing_zyx_mm } = finding.geometry;
  const seconds = Object.entries(finding.seconds).map(([name, value]) => `${name} ${value.toFixed(1)} s`);
  const rows = {
    Model: finding.model.name,
    Weights: finding.model.sha256.slice(0, 12),
    Scan: `${shape_zyx[2]} × ${shape_zyx[1]} × ${shape_zyx[0]}`,
    Voxel: `${[...spacing_zyx_mm].reverse().map((mm) => Number(mm.toFixed(2))).join(" × ")} mm`,
    Time: seconds.join(", "),
  };
  by("about").replaceChildren(
    ...Object.entries(rows).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]),
  );
}

async function download(from: HTMLButtonElement, id: string, type: string, file: string): Promise<void> {
  from.disabled = true;
  by("download-error").hidden = true;
  try {
    const link = element("a", { href: URL.createObjectURL(await api.resultFile(id, type)), download: file });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  } catch (error) {
    by("download-error").textContent = error instanceof Error ? error.message : String(error);
    by("download-error").hidden = false;
  }
  from.disabled = false;
}

// ------------------------------------------------------------------ controls

/** A row of radio buttons that look like one. */
function segmented(id: string, names: string[], onChange: (name: string) => void): void {
  for (const name of names) {
    const input = element("input", { type: "radio", name: id, value: name });
    input.addEventListener("change", () => onChange(name));
    by(id).append(element("label", {}, input, element("span", {}, name)));
  }
}

function choose(id: string, name: string): void {
  const input = by(id).querySelector<HTMLInputElement>(`input[value="${name}"]`)!;
  input.checked = true;
  input.dispatchEvent(new Event("change"));
}

function press(event: KeyboardEvent): void {
  const target = event.target as HTMLElement;
  if (by("result").hidden || event.ctrlKey || event.metaKey || event.altKey || target.matches("select, [type=text]")) return;
  const slice = by<HTMLInputElement>("slice");
  const steps: Record<string, number> = { ArrowUp: 1, ArrowDown: -1, PageUp: 10, PageDown: -10 };
  const planes: Record<string, PlaneName> = { a: "Axial", c: "Coronal", s: "Sagittal", m: "All" };
  const window = Object.keys(WINDOWS)[Number(event.key) - 1];
  const plane = planes[event.key.toLowerCase()];
  if (target.matches("input") && event.key in { ...steps, Home: 0, End: 0 }) return; // its own keys
  if (event.key in steps) viewer.step(steps[event.key]!);
  else if (event.key === "Home") viewer.goTo(0);
  else if (event.key === "End") viewer.goTo(Number(slice.max) - 1);
  else if (window) choose("windows", window);
  else if (plane) choose("planes", plane);
  else if (event.key.toLowerCase() === "o") toggleMask();
  else return;
  event.preventDefault();
}

function toggleMask(): void {
  const opacity = by<HTMLInputElement>("opacity");
  const before = opacity.dataset.before ?? "50";
  opacity.dataset.before = opacity.value === "0" ? before : opacity.value;
  opacity.value = opacity.value === "0" ? before : "0";
  opacity.dispatchEvent(new Event("input"));
}

function listen(): void {
  const zone = by("zone");
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget ?? zone.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    if (event.dataTransfer && !by("drop").hidden) void dropped(event.dataTransfer).then(send);
  });
  for (const id of ["folder", "file"]) {
    const input = by<HTMLInputElement>(id);
    by(`choose-${id}`).addEventListener("click", () => input.click());
    input.addEventListener("change", () => {
      const files = [...(input.files ?? [])].filter(({ name }) => !name.startsWith("."));
      input.value = "";
      void send({ files });
    });
  }
  by("sign-in").addEventListener("submit", (event) => {
    event.preventDefault();
    api.token.set(by<HTMLInputElement>("token").value.trim());
    by<HTMLInputElement>("token").value = "";
    void start();
  });
  by("sign-out").addEventListener("click", () => {
    api.token.clear();
    restart();
  });
  by("model").addEventListener("change", offerExplanation);
  by("cancel").addEventListener("click", () => void cancel());
  by("retry").addEventListener("click", () => again());
  for (const each of document.querySelectorAll("[data-do=restart]")) each.addEventListener("click", restart);
  by("help").addEventListener("click", () => by<HTMLDialogElement>("keys").showModal());
  by<HTMLInputElement>("slice").addEventListener("input", (event) =>
    viewer.goTo(Number((event.target as HTMLInputElement).value) - 1),
  );
  by<HTMLInputElement>("opacity").addEventListener("input", (event) =>
    viewer.setOpacity(Number((event.target as HTMLInputElement).value) / 100),
  );
  by<HTMLInputElement>("map").addEventListener("change", (event) =>
    viewer.setMapVisible((event.target as HTMLInputElement).checked),
  );
  document.addEventListener("keydown", (event) => {
    if (event.key === "?") by<HTMLDialogElement>("keys").showModal();
    else press(event);
  });
  segmented("planes", Object.keys(PLANES), (name) => viewer.setPlane(name as PlaneName));
  segmented("windows", Object.keys(WINDOWS), (name) => viewer.setWindow(name as WindowName));
  viewer.onPlace = ({ slice, slices, hu }) => {
    const input = by<HTMLInputElement>("slice");
    input.max = String(slices);
    input.value = String(slice + 1);
    by("place").textContent = `Slice ${slice + 1} of ${slices}${hu === null ? "" : `, ${hu} HU`}`;
  };
}

listen();
await viewer.attach(by("canvas")).catch((error: unknown) => fail(error, () => location.reload()));
await start();
