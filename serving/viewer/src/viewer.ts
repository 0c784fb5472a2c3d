// Slices of a scan with what was found over them: NiiVue, with the few verbs that this page needs.
import { DRAG_MODE, NVImage, Niivue, SHOW_RENDER, SLICE_TYPE } from "@niivue/niivue";

export const WINDOWS = {
  Lung: { level: -600, width: 1500 },
  "Soft tissue": { level: 40, width: 400 },
  Mediastinum: { level: 50, width: 350 },
  Bone: { level: 400, width: 1800 },
  Brain: { level: 40, width: 80 },
} as const;
export type WindowName = keyof typeof WINDOWS;

export const PLANES = {
  Axial: SLICE_TYPE.AXIAL,
  Coronal: SLICE_TYPE.CORONAL,
  Sagittal: SLICE_TYPE.SAGITTAL,
  All: SLICE_TYPE.MULTIPLANAR,
} as const;
export type PlaneName = keyof typeof PLANES;

export interface Place {
  slice: number;
  slices: number;
  hu: number | null;
}

/** Colours of labels 1, 2, …: apart from one another for colour-blind eyes too (Okabe and Ito). */
const COLOURS: [number, number, number][] = [
  [86, 180, 233],
  [230, 159, 0],
  [0, 200, 140],
  [240, 228, 66],
  [213, 94, 0],
  [204, 121, 167],
  [0, 114, 210],
];

export function colourOf(label: number): [number, number, number] {
  return COLOURS[(label - 1) % COLOURS.length]!;
}

/** A label map: one that was sent, or one that is drawn on the grid of the scan. */
export type Over = Blob | ((scan: NVImage) => NVImage) | null;

interface Shown {
  image: NVImage;
  mask: NVImage | null;
  map: NVImage | null;
}

export class Viewer {
  onPlace: (place: Place) => void = () => {};
  private readonly view: Niivue;
  private plane: PlaneName = "Axial";
  private hidden = new Set<number>();
  private labels = 0;
  private opacity = 0.5;
  private shown: Shown | null = null;

  constructor() {
    this.view = new Niivue({
      logLevel: "error",
      loadingText: "",
      dragAndDropEnabled: false,
      backColor: [0, 0, 0, 1],
      crosshairColor: [1, 0.85, 0.2, 0.8],
      crosshairWidth: 0.3,
      crosshairWidthUnit: "percent",
      crosshairGap: 12,
      fontColor: [0.9, 0.93, 0.96, 1],
      fontMinPx: 18,
      isRadiologicalConvention: true,
      isNearestInterpolation: false,
      multiplanarShowRender: SHOW_RENDER.NEVER,
      dragMode: DRAG_MODE.contrast, // the right button changes the window, as in reading rooms
      viewModeHotKey: "",
      clipPlaneHotKey: "",
      cycleClipPlaneHotKey: "",
    });
    this.view.onLocationChange = () => this.tellPlace();
  }

  async attach(canvas: HTMLCanvasElement): Promise<void> {
    await this.view.attachToCanvas(canvas);
  }

  /** Show a scan (NIfTI, HU), a label map of `labels` classes over it, and a map in percent. */
  async show(image: Blob, mask: Over, map: Blob | null, labels: number): Promise<void> {
    this.clear();
    this.labels = labels;
    this.hidden.clear();
    const read = async (blob: Blob, name: string, colormap: string): Promise<NVImage> =>
      NVImage.loadFromUrl({ url: name, name, buffer: await blob.arrayBuffer(), colormap });
    const scan = await read(image, "scan.nii.gz", "gray");
    this.shown = {
      image: scan,
      mask: mask instanceof Blob ? await read(mask, "mask.nii.gz", "gray") : (mask && mask(scan)),
      map: map && (await read(map, "map.nii.gz", "inferno")),
    };
    for (const each of [this.shown.image, this.shown.mask, this.shown.map]) if (each) this.view.addVolume(each);
    if (this.shown.map) {
      this.shown.map.cal_min = 5;
      this.shown.map.cal_max = 100;
      this.shown.map.opacity = 0;
    }
    this.paint();
    this.setPlane(this.plane);
  }

  clear(): void {
    for (const volume of [...this.view.volumes]) this.view.removeVolume(volume);
    this.shown = null;
  }

  setWindow(name: WindowName): void {
    if (!this.shown) return;
    const { level, width } = WINDOWS[name];
    this.shown.image.cal_min = level - width / 2;
    this.shown.image.cal_max = level + width / 2;
    this.view.updateGLVolume();
  }

  setPlane(name: PlaneName): void {
    this.plane = name;
    this.view.setSliceType(PLANES[name]);
    this.tellPlace();
  }

  setOpacity(opacity: number): void {
    this.opacity = opacity;
    this.paint();
  }

  setVisible(label: number, visible: boolean): void {
    if (visible) this.hidden.delete(label);
    else this.hidden.add(label);
    this.paint();
  }

  setMapVisible(visible: boolean): void {
    if (this.shown?.map) this.view.setOpacity(this.view.volumes.indexOf(this.shown.map), visible ? 0.6 : 0);
  }

  /** Go to a slice of the plane that is shown, from 0 on. */
  goTo(slice: number): void {
    const [axis, size] = this.axis();
    const along: [number, number, number] = [0, 0, 0];
    along[axis] = Math.max(0, Math.min(size - 1, slice)) - this.place().slice;
    this.view.moveCrosshairInVox(...along);
    this.tellPlace();
  }

  step(slices: number): void {
    this.goTo(this.place().slice + slices);
  }

  /** Go to a place in patient millimetres, LPS; NiiVue counts to the right, anterior and up. */
  goToLps([left, posterior, superior]: [number, number, number]): void {
    this.view.scene.crosshairPos = this.view.mm2frac([-left, -posterior, superior]);
    this.view.drawScene();
    this.tellPlace();
  }

  /** Go to the axial slice that has most of a label, to the middle of it there. */
  goToLabel(label: number): void {
    const mask = this.shown?.mask;
    if (!mask?.img || !mask.dimsRAS || !mask.img2RASstart || !mask.img2RASstep) return;
    const { img, dimsRAS, img2RASstart: start, img2RASstep: step } = mask;
    const [nx, ny, nz] = dimsRAS.slice(1) as [number, number, number];
    let best = { count: 0, x: 0, y: 0, z: 0 };
    for (let z = 0; z < nz; z++) {
      const slice = { count: 0, x: 0, y: 0, z };
      for (let y = 0; y < ny; y++) {
        const row = start[0]! + start[1]! + start[2]! + y * step[1]! + z * step[2]!;
        for (let x = 0; x < nx; x++) {
          if (img[row + x * step[0]!] !== label) continue;
          slice.count++;
          slice.x += x;
          slice.y += y;
        }
      }
      if (slice.count > best.count) best = slice;
    }
    if (!best.count) return;
    const middle: [number, number, number] = [best.x / best.count, best.y / best.count, best.z];
    this.view.scene.crosshairPos = this.view.vox2frac(middle);
    this.view.drawScene();
    this.tellPlace();
  }

  private paint(): void {
    const mask = this.shown?.mask;
    if (!mask) return;
    const numbers = [...Array(this.labels + 1).keys()];
    const channel = (c: 0 | 1 | 2) => numbers.map((n) => (n ? colourOf(n)[c] : 0));
    mask.setColormapLabel({
      R: channel(0),
      G: channel(1),
      B: channel(2),
      A: numbers.map((n) => (n && !this.hidden.has(n) ? 255 : 0)),
      I: numbers,
    });
    mask.opacity = this.opacity;
    this.view.updateGLVolume();
  }

  private axis(): [0 | 1 | 2, number] {
    const axis = ({ Axial: 2, All: 2, Coronal: 1, Sagittal: 0 } as const)[this.plane];
    return [axis, this.view.volumes[0]?.dimsRAS?.[axis + 1] ?? 1];
  }

  private place(): Place {
    const [axis, slices] = this.axis();
    if (!this.view.volumes.length) return { slice: 0, slices: 1, hu: null };
    const voxel = this.view.frac2vox(this.view.scene.crosshairPos);
    const hu = this.view.volumes[0]!.getValue(voxel[0]!, voxel[1]!, voxel[2]!);
    return { slice: Math.round(voxel[axis]!), slices, hu: Number.isFinite(hu) ? Math.round(hu) : null };
  }

  private tellPlace(): void {
    if (this.shown) this.onPlace(this.place());
  }
}
