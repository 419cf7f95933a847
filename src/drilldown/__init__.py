"""An MLflow-managed model lifecycle: from a first baseline to a registered champion."""
