// What somebody dropped or chose, as one body to send. Nothing is unpacked or looked into here.
import { Zip, ZipPassThrough } from "fflate";

export interface Study {
  files: File[];
}

/** Files of a drop, folders walked through. */
export async function dropped(transfer: DataTransfer): Promise<Study> {
  // Entries are there during the event only, so they are taken before the first await
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry()).filter((entry) => entry !== null);
  const found: File[] = [];
  for (const entry of entries) found.push(...(await walk(entry)));
  return { files: found };
}

/** The type that says what a study of one packed file is; null: its files are to be zipped. */
export function packedType(study: Study): string | null {
  const [only, ...more] = study.files;
  if (!only || more.length) return null;
  const name = only.name.toLowerCase();
  if (name.endsWith(".zip")) return "application/zip";
  return name.endsWith(".nii.gz") || name.endsWith(".nii") ? "application/x-nifti" : null;
}

/** The files as one zip, stored rather than compressed: it is read once, and CT hardly gets smaller at this speed. */
export async function zip(study: Study, signal: AbortSignal, onPacked: (fraction: number) => void): Promise<Blob> {
  const parts: BlobPart[] = [];
  let failed: Error | null = null;
  const archive = new Zip((error, chunk) => {
    if (error) failed = error;
    else parts.push(chunk as Uint8Array<ArrayBuffer>);
  });
  let number = 0;
  for (const file of study.files) {
    signal.throwIfAborted();
    const entry = new ZipPassThrough(`${String(number).padStart(6, "0")}.dcm`); // names may tell of the patient
    archive.add(entry);
    entry.push(new Uint8Array(await file.arrayBuffer()), true);
    onPacked(++number / study.files.length);
  }
  archive.end();
  if (failed) throw failed;
  return new Blob(parts, { type: "application/zip" });
}

async function walk(entry: FileSystemEntry): Promise<File[]> {
  if (entry.name.startsWith(".")) return [];
  if (entry.isFile) {
    return [await new Promise<File>((resolve, reject) => (entry as FileSystemFileEntry).file(resolve, reject))];
  }
  const reader = (entry as FileSystemDirectoryEntry).createReader();
  const found: File[] = [];
  for (;;) {
    const some = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return found; // a hundred at a time
    for (const child of some) found.push(...(await walk(child)));
  }
}
