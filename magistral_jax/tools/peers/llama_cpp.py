"""llama.cpp's server with as many slots as sequences at once: a script that needs numpy and gguf.

The model is a GGUF file; its weights are written out anew in the dtype asked for. The server is
`llama-server`, from the path or from $LLAMA_SERVER.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, perf_counter, sleep
from urllib.error import URLError
from urllib.request import Request, urlopen

import gguf
import numpy as np

START_S, ANSWER_S = 120.0, 1800.0


def converted(source: Path, out: Path, kind: gguf.GGMLQuantizationType) -> None:
    """The same network and tokenizer, its matrices in another type."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(out, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        inner = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        is_matrix = values.ndim > 1 and kind != gguf.GGMLQuantizationType.F32
        values = gguf.quants.quantize(values, kind) if is_matrix else values
        writer.add_tensor(tensor.name, values, raw_dtype=kind if is_matrix else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ask(address: str, tokens: list[int], length: int) -> None:
    body = {
        "prompt": tokens, "n_predict": length, "ignore_eos": True, "cache_prompt": False,
        "temperature": 1.0, "samplers": ["temperature"], "seed": 0,
    }  # fmt: skip
    request = Request(
        f"{address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urlopen(request, timeout=ANSWER_S) as answer:
        said = json.load(answer)
    assert said["tokens_predicted"] == length, said["tokens_predicted"]


def wait_for(address: str, server: subprocess.Popen) -> None:
    deadline = monotonic() + START_S
    while monotonic() < deadline:
        assert server.poll() is None, "llama-server ended while it started"
        try:
            with urlopen(f"{address}/health", timeout=5):
                return
        except (URLError, OSError):
            sleep(0.2)
    raise TimeoutError(f"llama-server did not start within {START_S:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("requests")
    parser.add_argument("--dtype", choices=["bf16", "f32"])
    parser.add_argument("--at-once", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int)
    asked = parser.parse_args()
    program = os.environ.get("LLAMA_SERVER") or shutil.which("llama-server")
    assert program, "there is no llama-server on the path, nor in $LLAMA_SERVER"
    assert asked.model.suffix == ".gguf", f"llama.cpp reads GGUF files, not {asked.model}"
    with np.load(asked.requests) as found:
        prompts, lengths = found["prompts"].tolist(), found["lengths"].tolist()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    room = len(prompts[0]) + max(lengths) + 8
    kind = {"bf16": gguf.GGMLQuantizationType.BF16, "f32": gguf.GGMLQuantizationType.F32}
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.gguf"
        converted(asked.model, model, kind[asked.dtype])
        command = [
            program, "-m", str(model), "-np", str(asked.at_once), "-c", str(room * asked.at_once),
            "-t", str(asked.threads), "-tb", str(asked.threads), "--host", "127.0.0.1",
            "--port", str(port), "--no-webui",
        ]  # fmt: skip
        with Path(folder, "log").open("w") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            wait_for(address, server)
            with ThreadPoolExecutor(asked.at_once) as pool:
                for repeat in range(asked.repeats + 1):
                    began = perf_counter()
                    list(pool.map(lambda p, n: ask(address, p, n), prompts, lengths))
                    if repeat:
                        rates.append(sum(lengths) / (perf_counter() - began))
        finally:
            server.kill()
            server.wait()
    sys.stdout.write(json.dumps(rates) + "\n")


main()
