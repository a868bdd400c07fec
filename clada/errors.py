"""The mistakes a user can make, as exceptions.

    CladaError              any of them: one line naming the cause and the remedy; the commands exit with code 2
    ├── InputError          a file, text or option that cannot be used
    ├── AssetError          an embedded model or corpus that cannot be fetched or fails its checksum
    ├── ModelError          a model name, family or size that cannot be used
    ├── StudyError          a study folder that is missing, unfinished, damaged or of something else
    └── NotIdentifiedError  a regressor whose coefficient the design cannot estimate

Anything else that escapes is a bug and shows its traceback.
"""


class CladaError(Exception):
    """A mistake of the user. `str(error)` is one line: the cause, then the remedy."""


class InputError(CladaError):
    """A file, text or option cannot be used."""


class AssetError(CladaError):
    """An embedded model or corpus cannot be fetched, or its checksum is wrong."""


class ModelError(CladaError):
    """A model is unknown, of an unsupported family, or too small for what was asked."""


class StudyError(CladaError):
    """A study folder is missing, unfinished, damaged, or belongs to another model or corpus."""


class NotIdentifiedError(CladaError):
    """A regressor does not vary where the model needs it to, so its coefficient is not identified."""
