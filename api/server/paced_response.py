"""An answer that is sent piece by piece, as fast as it is taken."""

from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.server.errors import TransfersFull, TransferTooSlow
from api.server.transfers import Transfer

PIECE_BYTES = 2**17


class PacedResponse(Response):
    """A large answer. Sent at once, it would rest in the server's buffer for as long as its reader
    likes, when the route has long ended."""

    def __init__(self, content: bytes, transfer: Transfer, **options: Any) -> None:
        """
        Args:
            content: The body.
            transfer: In which its bytes are counted already; says when they have to be taken.
            options: Of :class:`starlette.responses.Response`.
        """
        super().__init__(content, **options)
        self._transfer = transfer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._transfer as transfer:
            try:
                await send(
                    {
                        "type": "http.response.start",
                        "status": self.status_code,
                        "headers": self.raw_headers,
                    }
                )
                for begin in range(0, max(1, len(self.body)), PIECE_BYTES):
                    end = begin + PIECE_BYTES
                    await transfer.wait(
                        send(
                            {
                                "type": "http.response.body",
                                "body": self.body[begin:end],
                                "more_body": end < len(self.body),
                            }
                        )
                    )
            except (TransferTooSlow, TransfersFull):
                return  # unfinished: the server closes the connection
