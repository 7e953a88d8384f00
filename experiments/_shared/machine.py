"""The machine in words, for records and tables."""


def hardware() -> str:
    """The device that trains."""
    import jax

    from nctheory import _provenance

    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{device.device_kind} x {jax.device_count()}"
    machine = _provenance.machine()
    return f"{machine['cpu_model'] or 'CPU'}, {machine['num_cores']} cores"
