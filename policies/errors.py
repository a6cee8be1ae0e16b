"""The errors of training, of its data and of rewards."""


class TrainError(ValueError):
    """Data, a reward function or a base model that training cannot use; one sentence."""


class SettingsError(TrainError):
    """A setting that is unknown, missing or out of range."""
