from openvocab import loading
from openvocab.lab.study import Arm, trained

SHORT = Arm(size="tiny", settings=("fit.steps=3", "data.num_scenes=40", "data.batch_size=8"))


def test_an_arm_is_trained_once(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENVOCAB_CACHE", str(tmp_path))
    folder = trained(SHORT, 1)
    weights = (folder / "model" / "model.safetensors").stat().st_mtime_ns
    assert trained(SHORT, 1) == folder
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns == weights
    assert trained(SHORT, 2) != folder
    first, second = (loading.load(str(trained(SHORT, seed) / "model")) for seed in (1, 2))
    assert first.fingerprint != second.fingerprint


def test_an_arm_goes_on_from_another(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENVOCAB_CACHE", str(tmp_path))
    tuned = Arm(size="tiny", settings=(*SHORT.settings, "optim.lr=0"), init=SHORT)
    before = loading.load(str(trained(SHORT, 0) / "model"))
    after = loading.load(str(trained(tuned, 0) / "model"))
    assert (before.logit_scale == after.logit_scale).all()
    assert (before.text.projection.weight == after.text.projection.weight).all()


def test_its_command_is_what_a_person_would_type():
    line = SHORT.but("optim.lr=0.1").command(7)
    assert line.startswith("openvocab train clip --size tiny --data scenes --set fit.steps=3")
    assert line.endswith("--set optim.lr=0.1 --set fit.seed=7 --out RUN")
