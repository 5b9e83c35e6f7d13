"""A Hugging Face hub, or a server that answers like one (`HF_ENDPOINT`)."""

import os

import httpx
from huggingface_hub import get_token, hf_hub_url
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from mesh.errors import UnsupportedModel, WeightsError
from node_runner.weights.http_source import HttpSource

ENDPOINT = "https://huggingface.co"
BRANCH = "main"
COMMIT_HEADER = "X-Repo-Commit"


class HubUrls:
    """URLs of a repository's files at one commit: the one that `main` names at the first answer.

    Large files are redirected to a storage, whose signed URL is used until it has expired. The
    hub's token goes to the hub only.
    """

    def __init__(self, repository: str) -> None:
        self.name = repository
        self._endpoint = os.environ.get("HF_ENDPOINT", ENDPOINT).rstrip("/")
        self._revision = BRANCH
        self._storage_urls: dict[str, str] = {}
        token = get_token()
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def url_of(self, file: str) -> tuple[str, dict[str, str]]:
        if file in self._storage_urls:
            return self._storage_urls[file], {}
        url = hf_hub_url(self.name, file, revision=self._revision, endpoint=self._endpoint)
        return url, self._headers

    def on_response(self, file: str, response: httpx.Response) -> None:
        first = [*response.history, response][0]
        if self._revision == BRANCH and COMMIT_HEADER in first.headers:
            self._revision = first.headers[COMMIT_HEADER]
        if response.history and response.url.host != httpx.URL(self._endpoint).host:
            self._storage_urls[file] = str(response.url)

    def renew(self, file: str, refused: str) -> bool:
        if refused.startswith(self._endpoint):
            raise WeightsError(
                f"The hub has no {self.name} that everybody may read. If it is private or has "
                "terms to accept, set HF_TOKEN to the token of an account that may. If it is not "
                "there, --path says where the checkpoint lies."
            )
        self._storage_urls.pop(file, None)
        return True


def open_hub(repository: str) -> HttpSource:
    """The files of a repository (`owner/name`).

    Raises:
        UnsupportedModel: no repository can have that name.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError:
        raise UnsupportedModel(
            f"There is no model folder {repository}, and no hub has a repository of that name. "
            "--path is a folder, a URL, or a hub's owner/name."
        ) from None
    return HttpSource(HubUrls(repository))
