"""A small model that drafts: the same tokens in fewer round trips, or no more of them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mesh.errors import UnsupportedModel
from mesh.wire import SamplingParams
from node_runner.engine.decoding import draft_model
from node_runner.engine.decoding.draft_model import DraftModel, DraftRequest, load_draft_span
from node_runner.engine.decoding.speculation import SpeculationPolicy
from node_runner.engine.model.span_model import SpanModel
from tests.conftest import DEMO_MODEL
from tests.support.engine.pipeline import GREEDY, Pipeline, load_span
from tests.support.engine.sampling import ALL_PARAMS

CUTS = [0, 3, 6]
PROMPTS = [[0, *range(40, 60)], [0, *range(300, 340)], [0, 7, 8]]
TOKENS = 40
SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, seed=11, stop=[])


@pytest.fixture(autouse=True)
def always_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else the machine does."""
    monkeypatch.setattr(SpeculationPolicy, "pays", lambda _: True)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spans")


@pytest.fixture(scope="module")
def edge(cache: Path) -> SpanModel:
    return load_span(DEMO_MODEL, (0, 3), cache)


@pytest.fixture(scope="module")
def twin(edge: SpanModel, cache: Path) -> SpanModel:
    """The model itself."""
    return load_draft_span(str(DEMO_MODEL), edge, cache=cache)


@pytest.fixture(scope="module")
def stranger(edge: SpanModel, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> SpanModel:
    """Two layers of random weights, with the same vocabulary."""
    folder = tmp_path_factory.mktemp("stranger")
    settings = json.loads((DEMO_MODEL / "config.json").read_text()) | {"num_hidden_layers": 2}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings)).save_pretrained(folder)
    shutil.copy(DEMO_MODEL / "tokenizer.json", folder)
    return load_draft_span(str(folder), edge, cache=cache)


def generated(
    cache: Path, sampling: SamplingParams, draft: SpanModel | None, prompts: list[list[int]]
) -> tuple[list[list[int]], Pipeline]:
    pipeline = Pipeline.cut(DEMO_MODEL, CUTS, cache, speculate=draft is not None, draft_span=draft)
    pipeline.engines[0].span.end_tokens = frozenset()
    for number, prompt in enumerate(prompts):
        pipeline.open(f"{number}", prompt, max_tokens=TOKENS, sampling=sampling)
    pipeline.run()
    return [pipeline.tokens(f"{number}") for number in range(len(prompts))], pipeline


@pytest.mark.parametrize(
    "sampling", [GREEDY, SAMPLED, ALL_PARAMS], ids=["greedy", "sampled", "all"]
)
def test_drafts_of_the_model_itself_are_accepted(
    cache: Path, twin: SpanModel, sampling: SamplingParams
) -> None:
    """Also when sampling, since its draws are the same."""
    plain, without = generated(cache, sampling, None, PROMPTS)
    drafted, pipeline = generated(cache, sampling, twin, PROMPTS)
    assert drafted == plain
    assert len(pipeline.batches) < len(without.batches) / 2
    draft_tokens, accepted = pipeline.engines[0].edge.pop_draft_counts()
    assert accepted > 0.8 * draft_tokens  # those looked up in the text are not its own


@pytest.mark.parametrize(
    "sampling", [GREEDY, SAMPLED, ALL_PARAMS], ids=["greedy", "sampled", "all"]
)
def test_drafts_that_are_rejected_change_no_token(
    cache: Path, stranger: SpanModel, sampling: SamplingParams
) -> None:
    plain, _ = generated(cache, sampling, None, PROMPTS)
    drafted, _ = generated(cache, sampling, stranger, PROMPTS)
    assert drafted == plain


def test_a_long_prompt_is_read_in_chunks(
    cache: Path, twin: SpanModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft_model, "DRAFT_PREFILL_CHUNK", 16)
    prompts = [[0, *range(20, 120)], [0, 5]]
    plain, _ = generated(cache, GREEDY, None, prompts)
    drafted, pipeline = generated(cache, GREEDY, twin, prompts)
    assert drafted == plain
    assert pipeline.engines[0].edge.pop_draft_counts()[1] > 0


def test_kv_is_bounded_and_freed(twin: SpanModel) -> None:
    model = DraftModel(twin, positions=64)
    requests = [DraftRequest(f"{number}", PROMPTS[0], 3, 32, GREEDY, None) for number in range(3)]
    assert [len(draft) for draft in model.draft(requests)] == [3, 3, 0]
    model.close("0")
    assert [len(draft) for draft in model.draft(requests[1:])] == [3, 3]


def test_the_node_keeps_within_its_budget(cache: Path, twin: SpanModel) -> None:
    pipeline = Pipeline.cut(DEMO_MODEL, CUTS, cache, draft_span=twin)
    edge = pipeline.engines[0]
    drafts = edge.edge.draft_model
    assert drafts is not None
    together = edge.pool.budget_bytes + drafts.pool.budget_bytes
    assert 0.99e8 < together <= 1e8
    assert edge.pool.num_blocks == drafts.pool.num_blocks


def test_another_vocabulary_is_refused(edge: SpanModel, cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(DEMO_MODEL, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UnsupportedModel, match="another vocabulary"):
        load_draft_span(str(folder), edge, cache=cache)
