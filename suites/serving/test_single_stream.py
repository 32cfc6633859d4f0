def test_one_request_at_a_time(measure, model, single):
    """A stream that is alone on the server starts and decodes no slower than the baseline.

    Some regressions show only here: vllm#41306 cost Mixtral 21 % of its TPOT at concurrency 1.
    """
    measure(model, single).gate("tpot_ms.p50", "ttft_ms.p50")
