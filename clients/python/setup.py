"""Generates the message and stub modules from ../../proto while building."""

import pathlib

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).resolve().parent
PROTO = HERE.parent.parent / "proto"
FILES = ["cairn/v1/command.proto", "cairn/v1/event.proto", "cairn/v1/cluster.proto"]


class GenerateThenBuild(build_py):
    def run(self):
        from importlib.resources import files

        from grpc_tools import protoc

        target = HERE / "src"
        include = files("grpc_tools") / "_proto"
        code = protoc.main(
            ["protoc", f"-I{PROTO}", f"-I{include}", f"--python_out={target}", f"--pyi_out={target}",
             f"--grpc_python_out={target}", *FILES])
        if code != 0:
            raise SystemExit(f"protoc failed with {code}")
        (target / "cairn" / "v1" / "__init__.py").write_text('"""Generated from proto/cairn/v1."""\n')
        self.packages = sorted({*self.packages, "cairn.v1"})
        super().run()


setup(cmdclass={"build_py": GenerateThenBuild})
