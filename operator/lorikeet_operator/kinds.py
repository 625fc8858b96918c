"""The kinds of resources that are ours."""

from typing import Final

from lorikeet_api import names
from lorikeet_operator.kube.kinds import Kind

FINETUNEJOB: Final = Kind(names.GROUP, names.VERSION, "finetunejobs", "FineTuneJob")
TUNINGPROFILE: Final = Kind(names.GROUP, names.VERSION, "tuningprofiles", "TuningProfile", namespaced=False)
MODELDEPLOYMENT: Final = Kind(names.GROUP, names.VERSION, "modeldeployments", "ModelDeployment")
