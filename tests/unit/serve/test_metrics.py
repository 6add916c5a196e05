from openvocab.serve.metrics import Metrics


def test_the_text_is_what_prometheus_reads():
    metrics = Metrics()
    metrics.add("openvocab_requests_total", route='/a"\\\n', status="200")
    metrics.add("openvocab_requests_total", 2, route="/b", status="404")
    for rows in (1, 3, 1000):
        metrics.observe("openvocab_batch_rows", rows, tower="text")
    metrics.gauges["openvocab_queue_rows"] = lambda: 7
    text = metrics.text()
    assert text.endswith("\n")
    lines = text.splitlines()
    assert 'openvocab_requests_total{route="/a\\"\\\\\\n",status="200"} 1' in lines
    assert 'openvocab_requests_total{route="/b",status="404"} 2' in lines
    assert "openvocab_queue_rows 7" in lines
    buckets = [line for line in lines if line.startswith("openvocab_batch_rows_bucket")]
    assert [int(line.split()[-1]) for line in buckets] == [1, 1, 2, 2, 2, 2, 2, 2, 3]
    assert buckets[-1] == 'openvocab_batch_rows_bucket{tower="text",le="+Inf"} 3'
    assert 'openvocab_batch_rows_sum{tower="text"} 1004' in lines
    assert 'openvocab_batch_rows_count{tower="text"} 3' in lines
