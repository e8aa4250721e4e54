"""corembed in other people's software: one module a package, each behind the extra of the same name."""
