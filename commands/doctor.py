"""What would silently change if stock classes of transformers loaded a checkpoint, from its files alone."""

import json

import transformers

from ..checkpoints.drifts import Drift, Patient, drifts_of
from .errors import one_line_errors
from .parsers.doctor import read


def report(patient: Patient, drifts: list[Drift]) -> str:
    """What a person reads.

    Args:
        patient ([`~unime.checkpoints.drifts.Patient`]): the checkpoint.
        drifts (`list[Drift]`): what was found.
    """
    lines = [f"{patient.source}: {patient.model_type}{' adapter' if patient.adapter else ''}"]
    if patient.rules is None:
        lines.append("Its name is not in the table, so that nothing is known of its preset; name it with --preset.")
    else:
        name = patient.preset if isinstance(patient.preset, str) else patient.preset.name
        lines.append(f'Preset "{name}".')

    # what matters with the installed version comes first
    groups = (
        (f"With stock classes of transformers {transformers.__version__}:", True),
        ("With other versions only:", False),
    )
    for title, hits in groups:
        entries = [drift for drift in drifts if drift.hits == hits]
        if entries:
            lines += ["", title]
        for drift in entries:
            lines += [f"  {drift.name}", f"    stock: {drift.stock}", f"    UniME {drift.here}"]

    # silence would leave open whether anything was looked at
    if not any(drift.hits for drift in drifts):
        lines += [
            "",
            f"Nothing that we know of changes with stock classes of transformers {transformers.__version__}.",
        ]
    return "\n".join(lines)


def execute(options):
    """Does what the options of `unime doctor` say."""
    with one_line_errors("unime doctor"):
        patient = Patient(options.model, options.preset)
        drifts = drifts_of(patient)
    if options.json:
        entries = [drift._asdict() for drift in drifts]
        print(json.dumps({"model": options.model, "model_type": patient.model_type, "drifts": entries}))
    else:
        print(report(patient, drifts))


def main(arguments=None):
    """The command `unime doctor`."""
    execute(read(arguments))


if __name__ == "__main__":
    main()
