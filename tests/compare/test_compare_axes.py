"""Axes are read off the configs of any jobs."""

from __future__ import annotations

from made_jobs import config

from sft_lab.compare.axes import axes_of, ordered, short_names, shown


def test_equal_configs_have_no_axes():
    assert axes_of([config(), config()]) == [{}, {}]
    assert axes_of([config()]) == [{}]
    assert axes_of([]) == []


def test_what_differs_is_an_axis_and_the_seed_comes_last():
    found = axes_of([config(seed=1, trainer__learning_rate=1e-4), config(seed=2, trainer__learning_rate=1e-3)])
    assert found == [{"trainer.learning_rate": 1e-4, "seed": 1}, {"trainer.learning_rate": 1e-3, "seed": 2}]
    assert list(found[0]) == ["trainer.learning_rate", "seed"]


def test_what_does_not_change_a_result_is_no_axis():
    one = config(tracking={"kind": "wandb", "project": "p"}, store={"path": "/a"}, threads=1, rerun=False)
    other = config(tracking={"kind": "local"}, store={"path": "/b"}, threads=2, rerun=True)
    assert axes_of([one, other]) == [{}, {}]


def test_a_group_with_another_option_is_one_axis():
    semantic = {"kind": "semantic", "keep": "first", "threshold": 0.9}
    jobs = [config(), config(dedup=semantic, choices__dedup="semantic")]
    assert axes_of(jobs) == [{"dedup": "exact"}, {"dedup": "semantic"}]


def test_what_differs_within_an_option_stays_an_axis():
    semantic = [{"kind": "semantic", "keep": "first", "threshold": at} for at in (0.8, 0.9)]
    jobs = [config(), *(config(dedup=one, choices__dedup="semantic") for one in semantic)]
    assert axes_of(jobs) == [
        {"dedup": "exact"},
        {"dedup": "semantic", "dedup.threshold": 0.8},
        {"dedup": "semantic", "dedup.threshold": 0.9},
    ]


def test_a_kind_without_choices_is_an_axis():
    jobs = [config(choices=None), config(choices=None, template={"kind": "jinja", "path": "chatml"})]
    assert axes_of(jobs) == [{"template": "auto"}, {"template": "jinja"}]


def test_filters_and_nested_groups():
    length = {"length": {"kind": "length", "max_tokens": 9}}
    jobs = [
        config(filter={}, choices__filter=["none"], dedup__embedder={"name": "a"}),
        config(filter=length, choices__filter=["answered", "length"], dedup__embedder={"name": "b", "size": 3}),
    ]
    for job, name in zip(jobs, ("minilm", "e5"), strict=True):
        job["choices"]["dedup/embedder@dedup.embedder"] = name
    assert axes_of(jobs) == [
        {"filter": "none", "dedup.embedder": "minilm"},
        {"filter": "answered+length", "dedup.embedder": "e5"},
    ]


def test_an_option_by_another_name_with_the_same_content_is_no_axis():
    assert axes_of([config(), config(choices__trainer="my_lora")]) == [{}, {}]


def test_names_and_values_as_a_person_writes_them():
    assert short_names(["trainer.learning_rate", "seed"]) == {"trainer.learning_rate": "learning_rate", "seed": "seed"}
    assert short_names(["a.threshold", "b.threshold"])["a.threshold"] == "a.threshold"
    assert short_names(["dedup.embedder.name_or_path"]) == {"dedup.embedder.name_or_path": "embedder.name_or_path"}
    assert [shown(value) for value in (1e-5, True, "x", [1, "b"], None)] == ["1e-05", "true", "x", '[1, "b"]', "null"]
    assert ordered([10, 9, 1.5, "b", "a", None, 9]) == [1.5, 9, 10, "a", "b", None]
