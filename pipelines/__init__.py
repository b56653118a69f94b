"""Domain pipelines: each reads Arrow, calls the engine and writes Arrow (imported as ``streamsvd.pipelines``)."""
