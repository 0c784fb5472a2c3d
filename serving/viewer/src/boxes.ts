// Boxes around lesions, drawn as a label map: box n is the surface of label n, a voxel outside of what it holds.
import { NVImage } from "@niivue/niivue";
import type { Finding } from "./api";

/** As many as a label map of bytes can tell apart. */
export const MOST_BOXES = 255;

/** Every box of a finding on the grid of the scan that it was found in. */
export function outlines(scan: NVImage, finding: Finding): NVImage {
  const { affine_lps: rows, shape_zyx, spacing_zyx_mm } = finding.geometry;
  const columns = [0, 1, 2, 3].flatMap((column) => [0, 4, 8, 12].map((row) => rows[row + column]!));
  const toVoxels = new DOMMatrix(columns).inverse();
  const [nz, ny, nx] = shape_zyx;
  const drawn = NVImage.zerosLike(scan, "uint8");
  (finding.boxes ?? []).slice(0, MOST_BOXES).forEach(({ center_lps_mm: [x, y, z], size_mm }, index) => {
    const center = toVoxels.transformPoint({ x, y, z });
    const [x0, x1] = ends(center.x, size_mm[0] / spacing_zyx_mm[2]);
    const [y0, y1] = ends(center.y, size_mm[1] / spacing_zyx_mm[1]);
    const [z0, z1] = ends(center.z, size_mm[2] / spacing_zyx_mm[0]);
    for (let k = Math.max(0, z0); k <= Math.min(nz - 1, z1); k++)
      for (let j = Math.max(0, y0); j <= Math.min(ny - 1, y1); j++)
        for (let i = Math.max(0, x0); i <= Math.min(nx - 1, x1); i++)
          if (i === x0 || i === x1 || j === y0 || j === y1 || k === z0 || k === z1)
            drawn.img![i + nx * (j + ny * k)] = index + 1;
  });
  return drawn;
}

function ends(center: number, size: number): [number, number] {
  return [Math.floor(center - size / 2), Math.ceil(center + size / 2)];
}
