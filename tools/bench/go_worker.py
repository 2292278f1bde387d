"""Builds the worker in Go, with the SDK that protoc and its Go plugins make, in build/tools."""

import os
import pathlib
import shutil
import subprocess

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PLUGINS = ("google.golang.org/protobuf/cmd/protoc-gen-go@v1.34.2", "google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.4.0")
PROTOS = ("cairn/v1/command.proto", "cairn/v1/event.proto")


def build() -> pathlib.Path:
    tools = ROOT / "build" / "tools"
    target = tools / "goworker"
    sources = [HERE / "goworker" / "main.go", *(ROOT / "proto" / proto for proto in PROTOS)]
    if target.exists() and target.stat().st_mtime >= max(path.stat().st_mtime for path in sources):
        return target
    for plugin in PLUGINS:
        subprocess.run(["go", "install", plugin], env={**os.environ, "GOBIN": str(tools), "GOFLAGS": "-mod=mod"}, check=True)
    source = tools / "goworker-source"
    shutil.copytree(HERE / "goworker", source, dirs_exist_ok=True)
    packages = [f"M{proto}=goworker/cairn" for proto in PROTOS]
    packages.append("Mgoogle/rpc/status.proto=google.golang.org/genproto/googleapis/rpc/status")
    subprocess.run(["protoc", f"-I{ROOT / 'proto'}", *(f"--{plugin}_out={source}" for plugin in ("go", "go-grpc")),
                    *(f"--{plugin}_opt={option}" for plugin in ("go", "go-grpc") for option in ("module=goworker", *packages)),
                    *PROTOS], env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}, check=True)
    subprocess.run(["go", "mod", "tidy"], cwd=source, check=True, capture_output=True)
    subprocess.run(["go", "build", "-o", str(target), "."], cwd=source, check=True)
    return target
