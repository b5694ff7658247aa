"""Interfaces that save results and their sidecars in the derivative dataset."""

from pathlib import Path

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiObject,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from bids_app.errors import ReadWriteError
from bids_app.files import Json, copy_file, read_json, write_json
from bids_app.nifti import place


def _save(image: Path, target: Path, sidecar: Path, metadata: Json) -> None:
    """Copy a result to its final path, then write its sidecar.

    The sidecar of an earlier result is deleted first. A run that ends in between leaves an image
    without a sidecar, which is computed again, rather than one with the wrong sidecar.
    """
    try:
        sidecar.unlink(missing_ok=True)
    except OSError as error:
        raise ReadWriteError(f"{sidecar}: cannot be replaced ({error.strerror})") from error
    place(image, target)
    write_json(sidecar, metadata)


class _SaveDerivativeInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="a result")
    out_file = File(mandatory=True, desc="its final path")
    sidecar_file = File(mandatory=True, desc="final path of its sidecar")
    sidecar = traits.Dict(mandatory=True, desc="fields known in advance")
    measured = InputMultiObject(traits.Dict(), desc="fields measured during the run")


class _SaveDerivativeOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="the result at its final path")
    sidecar_file = File(exists=True, desc="its sidecar")


class SaveDerivative(SimpleInterface):
    """Copy a result atomically to its final path, then write its sidecar."""

    input_spec = _SaveDerivativeInputSpec
    output_spec = _SaveDerivativeOutputSpec
    always_run = True  # the copy may have been deleted since

    def _run_interface(self, runtime):
        sidecar = dict(self.inputs.sidecar)
        for part in self.inputs.measured if self.inputs.measured else []:
            sidecar.update(part)
        out_file, sidecar_file = Path(self.inputs.out_file), Path(self.inputs.sidecar_file)
        _save(Path(self.inputs.in_file), out_file, sidecar_file, sidecar)
        self._results.update(out_file=str(out_file), sidecar_file=str(sidecar_file))
        return runtime


class _SaveDerivativesInputSpec(BaseInterfaceInputSpec):
    in_files = traits.List(File(exists=True), mandatory=True, desc="results")
    out_files = traits.List(File(), mandatory=True, desc="their final paths")
    sidecar_files = traits.List(File(), mandatory=True, desc="final paths of their sidecars")
    sidecars = traits.List(traits.Dict(), mandatory=True, desc="fields of each known in advance")
    measured = traits.Dict(desc="fields of all measured during the run")


class _SaveDerivativesOutputSpec(TraitedSpec):
    out_files = traits.List(File(exists=True), desc="the results at their final paths")


class SaveDerivatives(SimpleInterface):
    """Copy several results to their final paths, each like :class:`SaveDerivative`."""

    input_spec = _SaveDerivativesInputSpec
    output_spec = _SaveDerivativesOutputSpec
    always_run = True  # copies may have been deleted since

    def _run_interface(self, runtime):
        inputs = self.inputs
        measured = inputs.measured if isdefined(inputs.measured) else {}
        rows = zip(
            inputs.in_files, inputs.out_files, inputs.sidecar_files, inputs.sidecars, strict=True
        )
        for in_file, out_file, sidecar_file, sidecar in rows:
            _save(Path(in_file), Path(out_file), Path(sidecar_file), {**sidecar, **measured})
        self._results["out_files"] = list(inputs.out_files)
        return runtime


class _SaveFileInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="a result")
    out_file = File(mandatory=True, desc="its final path")


class _SaveFileOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="the result at its final path")


class SaveFile(SimpleInterface):
    """Copy a result without a sidecar atomically to its final path."""

    input_spec = _SaveFileInputSpec
    output_spec = _SaveFileOutputSpec
    always_run = True

    def _run_interface(self, runtime):
        copy_file(Path(self.inputs.in_file), Path(self.inputs.out_file))
        self._results["out_file"] = self.inputs.out_file
        return runtime


class _AddToSidecarInputSpec(BaseInterfaceInputSpec):
    sidecar_file = File(exists=True, mandatory=True, desc="a sidecar at its final path")
    measured = InputMultiObject(traits.Dict(), mandatory=True, desc="fields measured since")


class _AddToSidecarOutputSpec(TraitedSpec):
    sidecar_file = File(exists=True, desc="the sidecar")


class AddToSidecar(SimpleInterface):
    """Add later measures to a sidecar, so that its image does not have to wait for them."""

    input_spec = _AddToSidecarInputSpec
    output_spec = _AddToSidecarOutputSpec
    always_run = True

    def _run_interface(self, runtime):
        path = Path(self.inputs.sidecar_file)
        sidecar = read_json(path)
        for part in self.inputs.measured:
            sidecar.update(part)
        write_json(path, sidecar)
        self._results["sidecar_file"] = str(path)
        return runtime
