"""Where the contracts are: a small JSON file that deploying writes and everybody else reads."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Deployment:
    """Addresses of FarToken and InferenceEscrow, their chain, and the escrow's first block."""

    token: str
    escrow: str
    chain_id: int
    block: int

    def write(self, path: Path) -> None:
        """Write the file, with the names of the ABI files in ``contracts/artifacts`` beside it."""
        abi = {"token": "FarToken.json", "escrow": "InferenceEscrow.json"}
        path.write_text(json.dumps(asdict(self) | {"abi": abi}, indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Deployment":
        """Read what `write` wrote.

        Raises:
            ValueError: the file is missing, or is no deployment.
        """
        try:
            found = json.loads(path.read_text())
            return cls(
                token=str(found["token"]),
                escrow=str(found["escrow"]),
                chain_id=int(found["chain_id"]),
                block=int(found["block"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no deployment file: {error!r}") from None
