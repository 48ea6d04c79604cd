"""Job files: every fault with its line and the nearest name, who overrides whom, and the study's presets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from fl.training.local import LocalSettings
from service.scenarios import SCENARIOS, ScenarioName
from service.spec import JobSpec, explain, job_schema, load_spec
from service.yaml_source import SpecError

CONFIGS = Path(__file__).parents[2] / "configs"
JOB = """\
name: trial
scenario: iid
data:
  root: scans
"""
PHANTOM = "name: trial\nscenario: {scenario}\ndata:\n  source: phantom\n"
STUDY = ("iid", "noniid", "holdout", "synthetic")


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return tmp_path / "job.yaml"


def load(path: Path, text: str, *overrides: str) -> JobSpec:
    path.write_text(text)
    return load_spec(path, overrides)


def faults(path: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load(path, text, *overrides)
    return [fault.replace(f"{path.parent}/", "") for fault in caught.value.faults]


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ("fl:\n  min_clinets: 3", "job.yaml:6:3: fl.min_clinets: unknown setting; did you mean fl.min_clients?"),
        ("scenaro: iid", "job.yaml:5:1: scenaro: unknown setting; did you mean scenario?"),
        (
            "learning_rate: 1",
            "job.yaml:5:1: learning_rate: unknown setting; did you mean "
            "fl.strategy.learning_rate or fl.local.learning_rate or fl.warmup.learning_rate?",
        ),
        (
            "fl:\n  local:\n    batchsize: 3",
            "job.yaml:7:5: fl.local.batchsize: unknown setting; did you mean fl.local.batch_size?",
        ),
        (
            "ray:\n  zzz: 3",
            "job.yaml:6:3: ray.zzz: unknown setting; known here: address, workers, threads",
        ),
    ],
)
def test_unknown_key_is_told_with_place_and_nearest_name(job: Path, lines: str, fault: str) -> None:
    assert faults(job, JOB + lines) == [fault]


def test_unknown_key_inside_a_partition_is_told_by_its_own_name(job: Path) -> None:
    text = JOB + "  partition: {kind: dirichlet, num_sites: 3, alhpa: 1}"

    assert faults(job, text) == [
        "job.yaml:5:46: data.partition.alhpa: unknown setting; did you mean data.partition.alpha?"
    ]


def test_all_faults_are_told_at_once(job: Path) -> None:
    found = faults(job, JOB + "fl:\n  rounds: -1\n  participation: 2\nseed: -1\n")

    assert [fault.split(": ")[:2] for fault in found] == [
        ["job.yaml:8:1", "seed"],
        ["job.yaml:6:3", "fl.rounds"],
        ["job.yaml:7:3", "fl.participation"],
    ]
    assert all("(given: " in fault for fault in found)


def test_missing_and_mistyped_values_are_told(job: Path) -> None:
    assert faults(job, "scenario: iid\ndata:\n  root: x\n") == ["job.yaml: name: required, but not set"]
    (fault,) = faults(job, JOB + "fl:\n  rounds: many\n")
    assert fault.startswith("job.yaml:6:3: fl.rounds: ") and "(given: 'many')" in fault
    (fault,) = faults(job, JOB.replace("iid", "idd"))
    assert (
        fault.startswith("job.yaml:2:1: scenario: ")
        and "'iid', 'noniid', 'holdout', 'synthetic', 'analytic' or" in fault
    )


def test_key_said_twice_names_both_places(job: Path) -> None:
    (fault,) = faults(job, JOB + "seed: 1\nfl:\n  rounds: 3\n  rounds: 4\n")

    assert fault.startswith("job.yaml:8:3: fl.rounds: said twice, first at ")
    assert fault.endswith("job.yaml:7:3; keep one")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("name: [trial\nscenario: iid\n", "job.yaml:2:"),
        ("name: trial\n  scenario: iid\n", "job.yaml:2:11: not valid YAML"),
        ("name: !!python/object:os.system {}\n", "job.yaml:1:7: not valid YAML"),
        ("? [1, 2]\n: 3\n", "job.yaml:1:3: not valid YAML"),
        ("name: 2024-13-45\n", "job.yaml: not valid YAML"),
        ("name: a\x07b\n", "job.yaml: not valid YAML"),
        ("", "job.yaml:1:1: expected a mapping"),
        ("- name\n", "job.yaml:1:1: expected a mapping"),
        ("a: 1\n---\nb: 2\n", "job.yaml:2:1: not valid YAML"),
    ],
)
def test_what_is_no_yaml_mapping_is_told_with_its_position(job: Path, text: str, where: str) -> None:
    (fault,) = faults(job, text)

    assert fault.startswith(where)


def test_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"nowhere\.yaml: cannot be read"):
        load_spec(tmp_path / "nowhere.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: Charit\xe9\n")
    with pytest.raises(SpecError, match=r"latin\.yaml: cannot be read"):
        load_spec(tmp_path / "latin.yaml")


def test_set_wins_over_the_file_and_the_file_over_the_scenario(job: Path) -> None:
    assert load(job, JOB).fl.rounds == 50
    assert load(job, JOB + "fl: {rounds: 8}").fl.rounds == 8
    assert load(job, JOB + "fl: {rounds: 8}", "fl.rounds=3").fl.rounds == 3
    assert load(job, JOB, "fl.rounds=3", "fl.rounds=4").fl.rounds == 4
    merged = load(job, JOB + "fl: {early_stop: {patience: 9}}").fl.early_stop
    assert merged is not None and (merged.window, merged.patience) == (3, 9)


def test_set_takes_yaml_values(job: Path) -> None:
    spec = load(
        job,
        JOB,
        "fl.early_stop=null",
        "model.speed.channels_last=false",
        "fl.local.learning_rate=1e-3",
        "data.nodes={}",
        "fl.local={epochs: 2, batch_size: 4}",
        "data.cache_dir=/tmp/a=b",
    )

    assert spec.fl.early_stop is None
    assert not spec.model.speed.channels_last
    assert (spec.fl.local.epochs, spec.fl.local.batch_size) == (2, 4)
    assert spec.data.cache_dir == Path("/tmp/a=b")
    assert load(job, JOB, "fl.local.learning_rate=1e-3").fl.local.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("fl.rounds", "--set fl.rounds: expected a.b=value"),
        ("=3", "--set =3: expected a.b=value"),
        ("fl..rounds=3", "--set fl..rounds=3: expected a.b=value"),
        ("fl.rounds=[3", "--set fl.rounds=[3: the value is not valid YAML"),
        ("name=2024-13-45", "--set name=2024-13-45: the value is not valid YAML"),
        ("fl.rounds=none", "--set fl.rounds=none: fl.rounds: "),
        ("fl.min_clinets=3", "--set fl.min_clinets=3: fl.min_clinets: unknown setting; did you mean fl.min_clients?"),
        ("fl.local={epochs: 0}", "--set fl.local={epochs: 0}: fl.local.epochs: "),
        ("scenario=idd", "--set scenario=idd: scenario: "),
    ],
)
def test_bad_overrides_are_told_as_they_were_given(job: Path, override: str, fault: str) -> None:
    assert faults(job, JOB, override)[0].startswith(fault)


def test_set_below_a_plain_value_of_an_earlier_set_is_told(job: Path) -> None:
    assert "plain value by an earlier --set" in faults(job, JOB, "fl=3", "fl.rounds=3")[0]


def test_partition_of_another_kind_replaces_that_of_scenario_and_file(job: Path) -> None:
    spec = load(job, JOB, "data.partition.kind=dirichlet", "data.partition.num_sites=6")
    assert spec.data.partition is not None
    assert spec.data.partition.model_dump(include={"kind", "num_sites", "alpha"}) == {
        "kind": "dirichlet",
        "num_sites": 6,
        "alpha": 0.5,
    }

    (fault,) = faults(job, JOB, "data.partition.kind=dirichlet")
    assert fault == "--set data.partition.kind=dirichlet: data.partition.num_sites: required, but not set"

    same_kind = load(job, JOB, "data.partition.num_sites=9")
    assert same_kind.data.partition is not None and same_kind.data.partition.kind == "iid"

    text = JOB + "  partition: {kind: one_class}\n"
    one_class = load(job, text)
    assert one_class.data.partition is not None and one_class.data.partition.kind == "one_class"


def test_scenario_by_set_brings_its_own_preset(job: Path) -> None:
    spec = load(job, JOB, "scenario=noniid")

    assert spec.data.partition is not None and spec.data.partition.kind == "one_class"
    assert spec.fl.sampling == "stratified"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_presets_are_the_values_of_the_scenarios_own_files(scenario: ScenarioName, job: Path) -> None:
    """A job that names the scenario alone must train as configs/<scenario>.yaml does."""
    text = (CONFIGS / f"{scenario}.yaml").read_text()
    full = load(job, text).model_dump(mode="json")
    short = load(job, f"name: {scenario}\nscenario: {scenario}\ndata: {{root: brain-tumor-mri}}\n").model_dump(
        mode="json"
    )
    said = yaml.safe_load(text)
    if scenario in STUDY:
        assert said["fl"]["augment"]["views"] == 0, "the study draws a fresh view every epoch; the default stores four"
        for spec in (full, short):
            spec["fl"]["augment"].pop("views")
    else:
        for spec in (full, short):
            spec["preprocess"].pop("size")

    assert short == full


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_is_valid_and_named_as_its_file(path: Path) -> None:
    spec = load_spec(path)

    assert spec.name == path.stem


def test_study_parameters_of_the_scenarios() -> None:
    iid, noniid, holdout, synthetic = (load_spec(CONFIGS / f"{name}.yaml") for name in STUDY)
    for spec in (iid, noniid, holdout, synthetic):
        assert (spec.preprocess.size, spec.fl.rounds, spec.fl.participation) == (200, 50, 0.5)
        assert spec.model.network.model_dump() == {
            "width": 1.0, "frozen_through": "block4_conv3", "dropout": 0.4, "head": "average", "random_features": 0
        }  # fmt: skip
        assert spec.fl.local == LocalSettings(epochs=5, batch_size=16, learning_rate=1e-4, optimizer="adam")
        assert spec.fl.augment.model_dump(exclude={"views"}) == {
            "rotation_degrees": 10, "shift_fraction": 0.05, "horizontal_flip": True
        }  # fmt: skip
    assert iid.fl.early_stop is not None and iid.fl.early_stop.model_dump() == {
        "window": 3, "min_delta": 0.002, "patience": 3
    }  # fmt: skip
    assert noniid.shared is None and noniid.fl.warmup is None and noniid.fl.sampling == "stratified"
    assert holdout.shared is not None and holdout.shared.holdout_fraction == 0.05
    assert holdout.fl.warmup is not None and holdout.fl.warmup.epochs == 10
    assert synthetic.shared is not None and synthetic.shared.fraction_per_site == 0.5
    assert synthetic.data.partition is not None
    assert synthetic.data.partition.model_dump(include={"sites_per_class"}) == {"sites_per_class": 8}


AWKWARD = [
    (JOB, ()),
    (PHANTOM.format(scenario="synthetic"), ("shared.source=holdout", "baseline=true")),
    (PHANTOM.format(scenario="holdout"), ("fl.warmup=null", "fl.early_stop=null", "shared.fraction_per_site=0.25")),
    (PHANTOM.format(scenario="holdout"), ("fl.warmup=null", "shared=null", "data.partition=null")),
    (PHANTOM.format(scenario="iid"), ("data.partition.kind=quantity_skew", "data.partition.num_sites=3")),
    (JOB, ("data.partition=null", "data.nodes={Bonn: node_1}", "fl.local.learning_rate=1e-7", f"seed={2**62 - 1}")),
    (JOB, ("model.weights={source: file, path: 'a: b.safetensors', normalization: caffe}", "model.network.width=0.1")),
    (
        PHANTOM.format(scenario="synthetic"),
        ("model.weights.source=random", "fl.warmup.layers=all", "model.network.frozen_through=null"),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "overrides"), AWKWARD)
def test_resolved_spec_reads_back_equal(job: Path, text: str, overrides: tuple[str, ...]) -> None:
    spec = load(job, text, *overrides)

    again = load(job, spec.to_yaml())

    assert again == spec
    assert again.learning_digest() == spec.learning_digest()


def test_schema_is_valid_and_describes_every_setting(job: Path) -> None:
    schema = job_schema()

    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert not list(validator.iter_errors(load(job, JOB).model_dump(mode="json")))
    assert list(validator.iter_errors({**yaml.safe_load(JOB), "fl": {"min_clinets": 3}}))
    for name, definition in {**schema["$defs"], "JobSpec": schema}.items():
        if definition.get("type") != "object":
            continue
        assert definition.get("additionalProperties") is False, f"{name} takes unknown keys"
        for setting, given in definition["properties"].items():
            # pydantic leaves out a description that is the model's own
            about = schema["$defs"][given["$ref"].rpartition("/")[2]] if "$ref" in given else given
            assert setting == "kind" or about.get("description"), f"{name}.{setting} has no description"


def test_explain_tells_who_set_each_value(job: Path) -> None:
    job.write_text(JOB + "fl:\n  local: {epochs: 2}\n")

    found = {one.key: one for one in explain(job, ["fl.participation=1", "fl.augment={views: 1}"])}

    origins = {
        "fl.local.batch_size": "default",
        "fl.early_stop.window": "scenario iid",
        "data.partition.num_sites": "scenario iid",
        "fl.local.epochs": f"{job}:6:11",
        "data.root": f"{job}:4:3",
        "fl.participation": "--set fl.participation=1",
        "fl.augment.views": "--set fl.augment={views: 1}",
        "fl.augment.rotation_degrees": "default",
    }
    assert {key: found[key].origin for key in origins} == origins
    assert found["fl.local.epochs"].value == 2
    assert all(one.description for one in found.values() if not one.key.endswith(".kind"))


def test_explain_does_not_credit_what_was_replaced(job: Path) -> None:
    job.write_text(JOB + "  partition: {kind: dirichlet, num_sites: 8, alpha: 0.1}\nfl:\n  early_stop: {window: 9}\n")

    overrides = ["data.partition.kind=quantity_skew", "data.partition.num_sites=4", "fl.early_stop=null"]
    found = {one.key: (one.value, one.origin) for one in explain(job, overrides)}

    assert found["data.partition.alpha"] == (0.5, "default")
    assert found["data.partition.num_sites"] == (4, "--set data.partition.num_sites=4")
    assert found["fl.early_stop"] == (None, "--set fl.early_stop=null")


@pytest.mark.parametrize(
    ("scenario", "overrides", "message"),
    [
        ("holdout", ("shared=null",), "fl.warmup trains on the shared set, but shared is null"),
        ("iid", ("model.weights.source=random",), "so it would stay random; set fl.warmup.layers: all"),
        ("holdout", ("model.weights.source=random",), "so it would stay random"),
        ("noniid", ("baseline=true",), "scenario noniid is the baseline itself"),
        ("holdout", ("data.validation_fraction=0.5", "shared.holdout_fraction=0.45"), "is 0.95; expected at most 0.9"),
        ("iid", ("data.nodes={a: b}",), "nodes pins real sites"),
        ("iid", ("data.source=folder",), "root must name one"),
        ("iid", ("model.weights.source=file",), "path goes with source `file`"),
        ("iid", ("model.weights.path=x",), "path goes with source `file`"),
        ("iid", ("model.network.frozen_through=block5_conv4",), "is not a layer that a tail can follow"),
    ],
)
def test_settings_that_do_not_fit_together_are_told(
    job: Path, scenario: str, overrides: tuple[str, ...], message: str
) -> None:
    (fault,) = faults(job, PHANTOM.format(scenario=scenario), *overrides)

    assert message in fault


def test_random_weights_are_allowed_where_all_layers_learn(job: Path) -> None:
    text = PHANTOM.format(scenario="holdout")
    assert load(job, text, "model.weights.source=random", "fl.warmup.layers=all")
    assert load(job, text, "model.weights.source=random", "model.network.frozen_through=null")


def test_learning_digest_ignores_where_and_how_patiently_and_nothing_else(job: Path) -> None:
    digest = load(job, JOB).learning_digest()
    same = (
        "name=other", "ray.workers=3", "ray.address=a:1", "data.cache_dir=/tmp/x", "data.root=elsewhere",
        "fl.min_clients=2", "fl.site_timeout_seconds=5", "fl.rounds=3", "fl.early_stop=null",
    )  # fmt: skip
    other: tuple[Any, ...] = (
        "seed=8", "fl.local.epochs=1", "model.speed.precision=float32", "preprocess.size=64",
        "data.validation_fraction=0.2", "fl.participation=1", "fl.augment.views=1", "model.network.dropout=0",
    )  # fmt: skip

    assert {load(job, JOB, one).learning_digest() for one in same} == {digest}
    digests = {load(job, JOB, one).learning_digest() for one in other}
    assert len(digests) == len(other) and digest not in digests
