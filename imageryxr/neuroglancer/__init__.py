"""Read Neuroglancer links into arrays, and write arrays as links."""
