// The HTTP API (docs/serving.md), as this page uses it.
import { EventSourceParserStream } from "eventsource-parser/stream";

export type Operation = "segment" | "classify" | "detect";
export type Explanation = "uncertainty" | "gradcam";

export interface Model {
  name: string;
  labels: string[];
  operation: Operation;
  version: string;
}

export interface Job {
  id: string;
  state: "queued" | "running" | "done" | "failed" | "cancelled";
  operation: Operation;
  model: string;
  progress: { done: number; of: number };
  error: { code: string; message: string } | null;
}

export interface Box {
  label: string;
  center_lps_mm: [number, number, number];
  size_mm: [number, number, number];
  probability: number;
}

export interface Finding {
  model: { name: string; sha256: string; version: string };
  geometry: { shape_zyx: [number, number, number]; spacing_zyx_mm: [number, number, number]; affine_lps: number[] };
  seconds: Record<string, number>;
  notes: string[];
  labels?: Record<string, { voxels: number; volume_ml: number }>;
  probabilities?: Record<string, number>;
  boxes?: Box[];
  calibrated?: boolean | null;
}

export interface Ask {
  model: Model;
  explain: Explanation | null;
  body: Blob;
  contentType: string;
}

export const TYPES = {
  json: "application/json",
  nifti: "application/gzip",
  map: "application/gzip; kind=explanation",
  seg: "application/dicom; kind=seg",
  sr: "application/dicom; kind=sr",
} as const;

/** What the server, or the way to it, has against a request. */
export class Problem extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
  ) {
    super(message);
  }
}

const TOKEN = "tomoray-token";

/** The token that requests carry: of this tab only, gone when it is closed. */
export const token = {
  get: () => sessionStorage.getItem(TOKEN),
  set: (value: string) => sessionStorage.setItem(TOKEN, value),
  clear: () => sessionStorage.removeItem(TOKEN),
};

export async function models(): Promise<Model[]> {
  return (await json<{ models: Model[] }>("v1/models")).models;
}

export async function job(id: string): Promise<Job> {
  return json<Job>(jobPath(id));
}

export async function cancel(id: string): Promise<void> {
  await ask(jobPath(id), { method: "DELETE" });
}

export async function finding(id: string): Promise<Finding> {
  return json<Finding>(`${jobPath(id)}/result`);
}

/** The result as a file of one of `TYPES`. */
export async function resultFile(id: string, type: string): Promise<Blob> {
  return (await ask(`${jobPath(id)}/result`, { headers: { Accept: type } })).blob();
}

/** The scan itself, as NIfTI. */
export async function image(id: string): Promise<Blob> {
  return (await ask(`${jobPath(id)}/image`)).blob();
}

/**
 * Send a study; the job that it became. `XMLHttpRequest`, because `fetch` does not tell how much has been sent.
 * The same key again is the same job.
 */
export function submit(
  wanted: Ask,
  key: string,
  signal: AbortSignal,
  onSent: (fraction: number) => void,
): Promise<Job> {
  const query = new URLSearchParams({ operation: wanted.model.operation, model: wanted.model.name });
  if (wanted.explain) query.set("explain", wanted.explain);
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", `v1/jobs?${query}`);
    for (const [name, value] of Object.entries(credentials())) request.setRequestHeader(name, value);
    request.setRequestHeader("Content-Type", wanted.contentType);
    request.setRequestHeader("Idempotency-Key", key);
    request.upload.onprogress = (event) => onSent(event.total ? event.loaded / event.total : 0);
    request.onload = () => {
      if (request.status < 300) resolve(JSON.parse(request.responseText) as Job);
      else reject(problem(request.status, request.responseText));
    };
    request.onerror = () => reject(unreachable());
    request.onabort = () => reject(signal.reason);
    signal.addEventListener("abort", () => request.abort());
    request.send(wanted.body);
  });
}

/** How the job goes, until it is over. Where the stream of events breaks off, it is taken up again. */
export async function* follow(id: string, signal: AbortSignal): AsyncGenerator<Job> {
  for (;;) {
    const now = await job(id); // says so at once where there is no such job
    yield now;
    if (isOver(now)) return;
    try {
      const response = await ask(`${jobPath(id)}/events`, { headers: { Accept: "text/event-stream" }, signal });
      const events = response.body!.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream());
      const reader = events.getReader();
      for (let read = await reader.read(); !read.done; read = await reader.read()) {
        const told = JSON.parse(read.value.data) as Job;
        yield told;
        if (isOver(told)) return;
      }
    } catch (error) {
      if (signal.aborted) throw error;
    }
    await new Promise((wake) => setTimeout(wake, 500));
  }
}

export function isOver(told: Job): boolean {
  return told.state === "done" || told.state === "failed" || told.state === "cancelled";
}

function jobPath(id: string): string {
  return `v1/jobs/${encodeURIComponent(id)}`;
}

async function json<T>(path: string): Promise<T> {
  return (await ask(path, { headers: { Accept: TYPES.json } })).json() as Promise<T>;
}

async function ask(path: string, options: RequestInit = {}): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(path, { ...options, headers: { ...credentials(), ...options.headers } });
  } catch (error) {
    throw options.signal?.aborted ? error : unreachable();
  }
  if (!response.ok) throw problem(response.status, await response.text());
  return response;
}

function credentials(): Record<string, string> {
  const known = token.get();
  return known ? { Authorization: `Bearer ${known}` } : {};
}

function problem(status: number, body: string): Problem {
  try {
    const { code, message } = (JSON.parse(body) as { error: { code: string; message: string } }).error;
    return new Problem(status, code, message);
  } catch {
    return new Problem(status, `http_${status}`, `The server answered with status ${status}.`);
  }
}

function unreachable(): Problem {
  return new Problem(0, "unreachable", "The server does not answer. Look whether it runs, and try again.");
}
