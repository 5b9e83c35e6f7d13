"""The page on which a wallet lets a machine in: `far-node login` shows its address."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from api.http.services import WithServices
from api.routes.machines import find_pending
from api.web.rendering import page
from market.errors import RateLimited
from market.identity.errors import UserCodeUnknown
from mesh.errors import MeshError

router = APIRouter(include_in_schema=False)


@router.get("/link")
async def link(
    request: Request,
    services: WithServices,
    code: Annotated[str, Query(max_length=20)] = "",
) -> HTMLResponse:
    """Without a code, the field to type it in; with one, the machine and who may let it in."""
    if not code.strip():
        return page(request, "code.html", error=None)
    try:
        pending = await find_pending(request, services, code)
    except (UserCodeUnknown, RateLimited) as error:
        return _ask_again(request, error)
    return page(
        request,
        "link.html",
        machine=pending.machine,
        address=pending.address,
        code=pending.user_code,
        domain=services.settings.auth.domain,
    )


def _ask_again(request: Request, error: MeshError) -> HTMLResponse:
    return page(request, "code.html", error.status, error=error.detail)
