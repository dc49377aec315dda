# One line per job. They use the active Python: create a virtual environment first.
build: ; MICROGPT_REQUIRE_EXTENSION=1 pip install -e '.[dev]'
test: ; MICROGPT_BACKEND=cython pytest && MICROGPT_BACKEND=python pytest
lint: ; ruff check . && mypy src
bench: ; python benchmarks/compare.py && python benchmarks/growth.py && pytest benchmarks
pictures: ; cd docs && sed -n '/^```python/,/^```/{/^```/!p;}' pictures.md | python
asan: ; .ci/asan
soak: ; .ci/soak
page: ; cd explain-page && npm ci && npm run check && npm run build
clean: ; rm -rf build dist src/*.egg-info src/microgpt/_core.c src/microgpt/_core.*.so .pytest_cache .mypy_cache .ruff_cache
.PHONY: build test lint bench pictures asan soak page clean
