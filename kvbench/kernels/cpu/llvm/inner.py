"""Compiling what only other kernels call: to optimised LLVM code, which they inline, and no further.

numba by itself makes machine code of every function, and an entry on disk, before it inlines it; of kernels that are a
hundred functions that is most of the time that compiling takes.
"""

from __future__ import annotations

from typing import Any

from numba import _dynfunc  # type: ignore[attr-defined]
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering


class InlinedLibrary(JITCodeLibrary):  # type: ignore[misc]
    """Code that is linked into other libraries and never runs by itself."""

    def _optimize_final_module(self) -> None:
        passes, builder = self._codegen._module_pass_manager(
            loop_vectorize=self._codegen._loopvect, slp_vectorize=False, opt=self._codegen._opt_level, cost="cheap"
        )
        passes.run(self._final_module, builder)

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class LoweringForInlining(NativeLowering):  # type: ignore[misc]
    """numba's lowering without machine code; callers find the function as they would otherwise."""

    _name = "lowering_for_inlining"

    def run_pass(self, state: Any) -> bool:
        """Lower ``state``, a function without Python's and C's wrappers."""
        state.library = InlinedLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        lowered, name = state["cr"], state.func_id.func_name
        stand_in = _dynfunc.make_function(lowered.fndesc.lookup_module(), name, "", 0, lowered.env, (state.library,))
        state.library.finalize()
        state.targetctx.insert_user_function(stand_in, lowered.fndesc, [state.library])
        state["cr"] = lowered._replace(cfunc=stand_in)
        return True


class Inner(CompilerBase):  # type: ignore[misc]
    """numba's compiler for such a function: ``@njit(pipeline_class=Inner)``."""

    def define_pipelines(self) -> list[Any]:
        """The usual passes with another lowering."""
        usual = DefaultPassBuilder.define_nopython_pipeline(self.state)
        usual.passes[:] = [
            (LoweringForInlining if each is NativeLowering else each, what) for each, what in usual.passes
        ]
        usual.finalize()
        return [usual]
