"""A cohort of procedural thorax CTs as DICOM, with masks that are known: for the demo and for tests.

`cohort` draws patients and writes them; `trunk`, `organs` and `lungs` hold the anatomy, `scanner` the noise and the
DICOM of each vendor, `canvas` what they draw with.
"""

from tomoray.phantom.cohort import PhantomImage, PhantomPatient, make_patient, write_cohort, write_patient
from tomoray.phantom.lungs import Nodule

__all__ = ["Nodule", "PhantomImage", "PhantomPatient", "make_patient", "write_cohort", "write_patient"]
