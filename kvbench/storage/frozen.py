"""The base of everything that is stored as JSON."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Base of all stored models: immutable, unknown fields refused, non-finite floats kept as strings in JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings", protected_namespaces=())
