"""The embedded world: scenes of one or two shapes, captions, an exact gold scorer, and raters with taste."""
