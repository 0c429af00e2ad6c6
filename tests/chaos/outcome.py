"""How a run ends: what it prints, and its exit code."""

import json
import shutil
import traceback
from pathlib import Path

from ledger import Broken


class TooShort(Exception):
    """The run kept every promise, but something that it is meant to test did not happen."""


def of_readers(readers):
    """Returns what readers received last, as evidence: by the name of a file."""
    return [(f"{reader.reading.name}.messages", reader.reading.lately) for reader in readers]


async def outcome(run, folder, carry_out):
    """Carries out a run, and closes it. Returns 0 if every promise was kept, 1 if one was broken, 2 if the run itself failed, and 3 if it was too
    short. The folder, with the evidence, is only removed in the first case. `carry_out` returns more figures, or nothing."""
    try:
        more = await carry_out()
        print(json.dumps(run.figures() | (more or {})), flush=True)
    except Broken as broken:
        for name, lines in run.evidence():
            (Path(folder) / name.replace("/", "_")).write_text("\n".join(lines))
        print(json.dumps(run.figures()), flush=True)
        print(f"BROKEN (seed {run.seed}): {broken}", flush=True)
        return 1
    except TooShort as short:
        print(f"too short (seed {run.seed}): {short}", flush=True)
        return 3
    except Exception:
        # The run failed, not what it tests. Print this before anything else can fail.
        traceback.print_exc()
        return 2
    finally:
        await run.close()
    shutil.rmtree(folder)
    return 0
