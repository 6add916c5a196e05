"""A few hundred of the requests that `benchmarks/serve.py --fuzz` sends by the ten thousand."""

import pytest
import requests
import schemathesis
from fuzzing import hostile
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving import running, url

from openvocab.clip.encoder import encoder
from openvocab.loading import with_verb
from openvocab.serve.app import create
from openvocab.serve.options import Options


@pytest.fixture(scope="module")
def app(clip, index):
    systems = {"explain": clip} | {verb: with_verb(clip, verb) for verb in ("segment", "depth")}
    return create(encoder(clip, precision="float32"), index, systems, Options(max_pixels=10**6), "holidays")


@pytest.fixture(scope="module")
def address(app):
    with running(app) as address:
        yield url(address)


def test_hostile_requests_are_the_callers_fault(address, image):
    with requests.Session() as session:
        statuses = []
        for sent in hostile(seed=0, count=300, image=image, model="tiny"):
            headers = {name: value.encode("latin-1") for name, value in sent.headers.items()}
            found = session.request(sent.method, address + sent.path, data=sent.content, headers=headers, timeout=60)
            assert found.status_code < 500, (sent, found.text)
            assert "Traceback" not in found.text
            assert "root:" not in found.text
            statuses.append(found.status_code)
        assert session.post(f"{address}/api/embed", json={"texts": ["a cat"]}).status_code == 200
    assert {200, 404, 405, 415, 422} <= set(statuses)


def test_what_openapi_allows_is_answered_as_openapi_says(address, app):
    schema = schemathesis.openapi.from_dict(app.openapi())
    schema.config.update(base_url=address)
    checks = [content_type_conformance, response_headers_conformance, response_schema_conformance]
    checks += [status_code_conformance, not_a_server_error]
    with requests.Session() as session:
        for operation in schema.get_all_operations():
            case = operation.ok().as_strategy()

            @settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
            @given(case)
            def one(asked):
                found = asked.call(session=session, timeout=60)
                asked.validate_response(found, checks=checks)

            one()
