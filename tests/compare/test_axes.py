"""Axes are found from the configs of any jobs."""

from __future__ import annotations

from job_folders import make_config

from sft_lab.compare.axes import find_axes, format_value, short_names, sort_values


def test_equal_configs_have_no_axes():
    assert find_axes([make_config(), make_config()]) == [{}, {}]
    assert find_axes([make_config()]) == [{}]
    assert find_axes([]) == []


def test_what_differs_is_an_axis_and_the_seed_comes_last():
    axes = find_axes(
        [make_config(seed=1, trainer__learning_rate=1e-4), make_config(seed=2, trainer__learning_rate=1e-3)]
    )
    assert axes == [{"trainer.learning_rate": 1e-4, "seed": 1}, {"trainer.learning_rate": 1e-3, "seed": 2}]
    assert list(axes[0]) == ["trainer.learning_rate", "seed"]


def test_what_does_not_change_a_result_is_no_axis():
    first = make_config(tracking={"kind": "wandb", "project": "p"}, store={"path": "/a"}, threads=1, rerun=False)
    second = make_config(tracking={"kind": "local"}, store={"path": "/b"}, threads=2, rerun=True)
    assert find_axes([first, second]) == [{}, {}]


def test_the_number_of_processes_is_an_axis_whatever_starts_them():
    """It changes the batch; a config without the key is of a run in one process."""
    several = {"launch": {"kind": "processes", "num_processes": 2}, "choices__launch": "processes"}
    alone = {"launch": {"kind": "serial", "num_processes": 1}, "choices__launch": "serial"}
    axes = find_axes([make_config(seed=7), make_config(seed=8, **alone), make_config(seed=7, **several)])
    assert [job["launch.num_processes"] for job in axes] == [1, 1, 2]
    assert list(axes[0]) == ["launch.num_processes", "seed"]
    other = {"launch": {"kind": "slurm", "num_processes": 1}, "choices__launch": "slurm"}
    assert find_axes([make_config(), make_config(**alone), make_config(**other)]) == [{}, {}, {}]


def test_a_group_with_another_option_is_one_axis():
    semantic = {"kind": "semantic", "keep": "first", "threshold": 0.9}
    jobs = [make_config(), make_config(dedup=semantic, choices__dedup="semantic")]
    assert find_axes(jobs) == [{"dedup": "exact"}, {"dedup": "semantic"}]


def test_what_differs_within_an_option_stays_an_axis():
    semantic = [{"kind": "semantic", "keep": "first", "threshold": threshold} for threshold in (0.8, 0.9)]
    jobs = [make_config(), *(make_config(dedup=dedup, choices__dedup="semantic") for dedup in semantic)]
    assert find_axes(jobs) == [
        {"dedup": "exact"},
        {"dedup": "semantic", "dedup.threshold": 0.8},
        {"dedup": "semantic", "dedup.threshold": 0.9},
    ]


def test_a_kind_without_choices_is_an_axis():
    jobs = [make_config(choices=None), make_config(choices=None, template={"kind": "jinja", "path": "chatml"})]
    assert find_axes(jobs) == [{"template": "auto"}, {"template": "jinja"}]


def test_filters_and_nested_groups():
    length = {"length": {"kind": "length", "max_tokens": 9}}
    jobs = [
        make_config(filter={}, choices__filter=["none"], dedup__embedder={"name": "a"}),
        make_config(filter=length, choices__filter=["answered", "length"], dedup__embedder={"name": "b", "size": 3}),
    ]
    for job, name in zip(jobs, ("minilm", "e5"), strict=True):
        job["choices"]["dedup/embedder@dedup.embedder"] = name
    assert find_axes(jobs) == [
        {"filter": "none", "dedup.embedder": "minilm"},
        {"filter": "answered+length", "dedup.embedder": "e5"},
    ]


def test_an_option_by_another_name_with_the_same_content_is_no_axis():
    assert find_axes([make_config(), make_config(choices__trainer="my_lora")]) == [{}, {}]


def test_names_and_values_as_a_person_writes_them():
    assert short_names(["trainer.learning_rate", "seed"]) == {"trainer.learning_rate": "learning_rate", "seed": "seed"}
    assert short_names(["a.threshold", "b.threshold"])["a.threshold"] == "a.threshold"
    assert short_names(["dedup.embedder.name_or_path"]) == {"dedup.embedder.name_or_path": "embedder.name_or_path"}
    assert [format_value(value) for value in (1e-5, True, "x", [1, "b"], None)] == [
        "1e-05",
        "true",
        "x",
        '[1, "b"]',
        "null",
    ]
    assert sort_values([10, 9, 1.5, "b", "a", None, 9]) == [1.5, 9, 10, "a", "b", None]
