"""OpenVINO IR is told by its content and described from its .xml; nothing in it is resolved or run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analyzer import describe
from schemas.descriptor import Format

WEIGHTS = np.arange(12, dtype=np.float32).tobytes() + np.array([0, 4], np.int64).tobytes()
IR = """<?xml version="1.0"?>
<net name="tiny" version="11">
	<layers>
		<layer id="0" name="image" type="Parameter" version="opset1">
			<data shape="?,4" element_type="f32" />
			<output><port id="0" precision="FP32" names="image,zebra"><dim>-1</dim><dim>4</dim></port></output>
		</layer>
		<layer id="1" name="weight" type="Const" version="opset1">
			<data element_type="f32" shape="4, 3" offset="0" size="48" />
			<output><port id="0" precision="FP32"><dim>4</dim><dim>3</dim></port></output>
		</layer>
		<layer id="2" name="axes" type="Const" version="opset1">
			<data element_type="i64" shape="2" offset="48" size="16" />
			<output><port id="0" precision="I64"><dim>2</dim></port></output>
		</layer>
		<layer id="3" name="product" type="MatMul" version="opset1">
			<data transpose_a="false" transpose_b="false" />
			<input>
				<port id="0" precision="FP32"><dim>-1</dim><dim>4</dim></port>
				<port id="1" precision="FP32"><dim>4</dim><dim>3</dim></port>
			</input>
			<output><port id="2" precision="FP32" names="scores"><dim>-1</dim><dim>3</dim></port></output>
		</layer>
		<layer id="4" name="Result_4" type="Result" version="opset1">
			<input><port id="0" precision="FP32"><dim>-1</dim><dim>3</dim></port></input>
		</layer>
	</layers>
	<edges>
		<edge from-layer="0" from-port="0" to-layer="3" to-port="0" />
		<edge from-layer="1" from-port="0" to-layer="3" to-port="1" />
		<edge from-layer="3" from-port="2" to-layer="4" to-port="0" />
	</edges>
	<rt_info><info name="OpenVINO Runtime" value="2026.4.1" /></rt_info>
</net>
"""


def folder(path: Path, text: str = IR, weights: bytes | None = WEIGHTS, name: str = "tiny") -> Path:
    path.mkdir(exist_ok=True)
    (path / f"{name}.xml").write_text(text)
    if weights is not None:
        (path / f"{name}.bin").write_bytes(weights)
    return path


def test_a_folder_with_a_graph_and_its_weights_is_described(tmp_path):
    report = describe(folder(tmp_path / "model"))
    found = report.descriptor
    assert report.refusal is None
    assert (found.format, found.framework, found.framework_version) == (Format.OPENVINO, "openvino", "IR 11")
    assert found.producer == "OpenVINO 2026.4.1"
    assert found.entry == "tiny.xml"
    assert [(spec.name, spec.dtype, spec.shape) for spec in found.inputs] == [("image", "float32", ("image_0", 4))]
    assert [(spec.name, spec.dtype, spec.shape) for spec in found.outputs] == [("scores", "float32", ("scores_0", 3))]
    assert found.operators == {"MatMul": 1}
    # The constant of axes is no parameter.
    assert (found.parameter_count, found.parameter_bytes, found.matrix_bytes) == (12, 48, 48)
    assert found.flops == 2 * 4 * 3


def test_a_graph_with_leading_comments_and_no_declaration_is_told_too(tmp_path):
    text = "\n<!-- made by hand -->\n" + IR.partition("?>")[2]
    assert describe(folder(tmp_path / "model", text)).descriptor.format is Format.OPENVINO


@pytest.mark.parametrize("text", ["<net><layers/></net>", '<html version="11"><layers></html>',
                                  '<?xml version="1.0"?><PMML version="4.4"><DataDictionary/></PMML>'])  # fmt: skip
def test_other_xml_is_no_openvino_model(tmp_path, text):
    file = tmp_path / "model.xml"
    file.write_text(text)
    assert describe(file).descriptor.format is Format.TEXT


def test_a_graph_alone_asks_for_its_weights(tmp_path):
    report = describe(folder(tmp_path / "model", weights=None) / "tiny.xml")
    assert report.refusal is not None
    assert report.refusal.code == "needs_input"
    assert "Where are the weights" in report.refusal.message
    assert "tiny.bin" in report.refusal.hint


def test_weights_that_were_cut_off_are_said_to_be(tmp_path):
    report = describe(folder(tmp_path / "model", weights=WEIGHTS[:-1]))
    assert report.refusal is not None
    assert report.refusal.code == "model_failed"
    assert "its weights need 64 bytes and the .bin has 63" in report.refusal.message


def test_a_graph_that_was_cut_off_is_said_to_be(tmp_path):
    report = describe(folder(tmp_path / "model", IR[: len(IR) // 2]))
    assert report.refusal is not None
    assert "truncated OpenVINO model" in report.refusal.message


def test_entities_that_multiply_are_never_expanded(tmp_path):
    laughs = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(12))
    bomb = f'<!DOCTYPE net [<!ENTITY l0 "ha">{laughs}]>'
    before_root = IR.replace("?>", f"?>{bomb}", 1).replace('name="tiny"', 'name="&l12;"', 1)
    report = describe(folder(tmp_path / "before", before_root))
    assert report.refusal is not None
    assert report.descriptor.format is not Format.OPENVINO

    # Told by its beginning, refused where the document type stands.
    from analyzer.draft import Draft
    from analyzer.formats import Seen
    from analyzer.openvino_ir import read_openvino
    from schemas.errors import ModelFailed

    path = folder(tmp_path / "direct", before_root) / "tiny.xml"
    with pytest.raises(ModelFailed, match="declares a document type or entities"):
        read_openvino(Draft(path, Format.OPENVINO, 1), Seen(Format.OPENVINO, "openvino"))


def test_an_old_version_is_refused_with_what_to_do(tmp_path):
    report = describe(folder(tmp_path / "model", IR.replace('version="11"', 'version="7"', 1)))
    assert report.refusal is not None
    assert report.refusal.code == "unsupported"
    assert "IR of version 7" in report.refusal.message


def test_operators_of_no_known_set_are_named(tmp_path):
    report = describe(folder(tmp_path / "model", IR.replace('"MatMul" version="opset1"', '"MatMul" version="acme"')))
    assert report.descriptor.operators == {"acme::MatMul": 1}
    assert report.descriptor.notes == ("It uses operators that are not in OpenVINO's own sets: MatMul (acme) 1 times.",)


def test_a_tokenizer_beside_the_model_is_passed_over_and_a_second_model_is_not(tmp_path):
    path = folder(folder(tmp_path / "model", name="openvino_model"), name="openvino_tokenizer")
    assert describe(path).descriptor.entry == "openvino_model.xml"
    report = describe(folder(path, name="other"))
    assert report.refusal is not None
    assert report.refusal.message == "This folder holds 2 OpenVINO models: openvino_model.xml, other.xml."


def test_absurd_numbers_and_depth_are_no_crash(tmp_path):
    wild = IR.replace("<dim>4</dim>", f"<dim>{'9' * 400}</dim>").replace('size="48"', 'size="-5"')
    assert describe(folder(tmp_path / "wild", wild)).descriptor.format is Format.OPENVINO
    deep = IR.replace("<rt_info>", "<rt_info>" + "<a>" * 100, 1)
    report = describe(folder(tmp_path / "deep", deep))
    assert report.refusal is not None
    assert report.refusal.code == "limit_exceeded"
