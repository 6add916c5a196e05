"""Regions against ONNX Runtime's operators, which are what exported detectors run."""

import onnx
import onnxruntime as runtime
import pytest
import torch

from openvocab.blocks.boxes import nms, roi_align


def run(kind, inputs, **attributes):
    types = {torch.float32: onnx.TensorProto.FLOAT, torch.int64: onnx.TensorProto.INT64}
    declared = [onnx.helper.make_tensor_value_info(n, types[v.dtype], list(v.shape)) for n, v in inputs.items()]
    kinds = {"RoiAlign": onnx.TensorProto.FLOAT, "NonMaxSuppression": onnx.TensorProto.INT64}
    out = onnx.helper.make_tensor_value_info("out", kinds[kind], None)
    node = onnx.helper.make_node(kind, list(inputs), ["out"], **attributes)
    graph = onnx.helper.make_graph([node], "one", declared, [out])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 16)], ir_version=8)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in inputs.items()})[0])


@pytest.mark.parametrize(("size", "samples", "stride"), [(7, 2, 4.0), (14, 2, 16.0), (5, 3, 8.0)])
def test_region_features(rng, size, samples, stride):
    features = torch.randn(3, 8, 12, 17, generator=rng)
    corners = torch.rand(50, 2, generator=rng) * 14 * stride - 2 * stride
    boxes = torch.cat([corners, corners + torch.rand(50, 2, generator=rng) * 8 * stride], 1)
    image = torch.randint(0, 3, (50,), generator=rng)
    expected = run(
        "RoiAlign",
        {"X": features, "rois": boxes, "batch_indices": image},
        coordinate_transformation_mode="half_pixel",
        output_height=size,
        output_width=size,
        sampling_ratio=samples,
        spatial_scale=1 / stride,
    )
    torch.testing.assert_close(roi_align(features, boxes, image, size, stride, samples), expected, atol=1e-5, rtol=1e-5)


def test_suppression(rng):
    corners = torch.rand(300, 2, generator=rng) * 40
    boxes = torch.cat([corners, corners + 5 + torch.rand(300, 2, generator=rng) * 20], 1)
    scores = torch.rand(300, 4, generator=rng)
    chosen = run(
        "NonMaxSuppression",
        {"boxes": boxes[None], "scores": scores.T[None].contiguous(), "most": torch.tensor([300])}
        | {"overlap": torch.tensor([0.5])},
    )
    expected = torch.zeros(300, 4, dtype=torch.bool)
    expected[chosen[:, 2], chosen[:, 1]] = True
    assert torch.equal(nms(boxes, scores, 0.5), expected)
    assert 50 < expected.sum() < 1200
