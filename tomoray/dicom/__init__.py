"""What DICOM files say: headers, pixels, segmentations, contours."""
