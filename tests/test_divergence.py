import pytest
import torch
from conftest import DATA, build, judge

from robustbench_rec.evaluation import evaluator
from robustbench_rec.evaluation.divergence import Side, divergence
from robustbench_rec.shifted import Shifted


@pytest.mark.parametrize("protocol", ["full", "sampled"])
@pytest.mark.parametrize("name", ["mf", "sasrec"])
@pytest.mark.parametrize("against", ["bf16", "another"])
def test_the_divergence_is_that_of_a_plain_loop_over_lists(name: str, protocol: str, against: str) -> None:
    model = build(name).eval()
    other, precision = (model, "bf16") if against == "bf16" else (build(name, seed=1).eval(), "fp32")
    judging = evaluator(DATA, judge(protocol=protocol, n_negatives=5 if protocol == "sampled" else None, top_k=[2, 4]))
    found = divergence(judging, "test", Side(Shifted(model), "fp32"), Side(Shifted(other), precision))
    differences, shared, differing, lists = [], {2: 0.0, 4: 0.0}, {2: 0, 4: 0}, 0
    for portion, batch in zip(judging.portions("test"), judging.inputs(model, "test"), strict=True):
        with torch.no_grad():
            exact = Shifted(model)(batch).scores
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                rough = Shifted(other)(batch).scores.float()
        excluded = set(zip(*(each.tolist() for each in portion.excluded), strict=True))
        for row in range(len(exact)):
            columns = [each for each in range(exact.shape[1]) if (row, each) not in excluded]
            differences += [float(exact[row, each]) - float(rough[row, each]) for each in columns]
            best = [
                sorted(columns, key=lambda each, scores=scores: (-float(scores[each]), each))
                for scores in (exact[row], rough[row])
            ]
            lists += 1
            for k in shared:
                first, second = best[0][:k], best[1][:k]
                shared[k] += len(set(first) & set(second)) / k
                differing[k] += first != second
    assert found["score_rmse"] == pytest.approx((sum(each**2 for each in differences) / len(differences)) ** 0.5)
    assert found["score_rmse"] > 0
    for k in (2, 4):
        assert found[f"overlap@{k}"] == pytest.approx(shared[k] / lists)
        assert found[f"lists@{k}"] == differing[k]


def test_a_model_does_not_diverge_from_itself_in_either_precision() -> None:
    judging, at = evaluator(DATA, judge(top_k=[2])), Shifted(build("mf"))
    for precision in ("fp32", "bf16"):
        found = divergence(judging, "test", Side(at, precision), Side(at, precision))
        assert found == {"score_rmse": 0.0, "overlap@2": 1.0, "lists@2": 0.0}


def test_single_predictions_have_no_lists() -> None:
    judging, at = evaluator(DATA, judge(protocol="ratings", metrics=None)), Shifted(build("mf"))
    assert set(divergence(judging, "test", Side(at, "fp32"), Side(at, "bf16"))) == {"score_rmse"}
