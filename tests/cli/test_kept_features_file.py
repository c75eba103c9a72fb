"""keep=[features] on the command line: a file beside the record, and an evaluation of its own."""

import numpy as np


def test_features_are_kept_on_request(lab, trained, tiny):
    fgsm = [*tiny, "attack=fgsm", "panel=none"]
    assert lab("evaluate", *fgsm).status == 0
    assert not list(trained.glob("evaluate/*/features.npz"))
    assert lab("evaluate", *fgsm, "keep=[features]", "keep.features.per_class=3").status == 0
    (path,) = trained.glob("evaluate/*/features.npz")
    kept, outcome = np.load(path), np.load(path.with_name("outcome.npz"))
    assert np.bincount(kept["label"]).tolist() == [3] * 10
    assert kept["clean"].shape == kept["attacked"].shape == (30, kept["clean"].shape[1])
    places = np.flatnonzero(np.isin(outcome["index"], kept["index"]))
    right = kept["prediction_clean"] == kept["label"]
    assert (right == outcome["clean"][places]).all()
    assert ((kept["prediction_attacked"] == kept["label"]) & right == outcome["robust"][places]).all()
    assert (kept["clean"] != kept["attacked"]).any(axis=1).tolist() == right.tolist(), "those that were attacked"
    ended = lab("evaluate", *fgsm, "keep=[features]", "keep.features.per_class=0")
    assert (ended.status, "keep.features.per_class: expected a whole number >= 1, got 0" in ended.err) == (2, True)
