"""The product: what the user sees (`ui`, `handlers`, `api`) and what serves it (`worker`, `models`)."""
