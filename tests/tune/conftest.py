"The project of the notebook tests, for studies."
from tests.notebooks.conftest import kernels, project, wait_for

__all__ = ["kernels", "project", "wait_for"]
