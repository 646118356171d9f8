"""Moving images between a store and the world: pull now; push, copy, import and export later."""
