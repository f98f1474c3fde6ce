"""What the tests share and is no test: models, pipelines, harnesses, children that they start."""
