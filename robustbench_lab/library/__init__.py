"""The library door: what `import robustbench_lab as lab` gives, for models and images of a program of one's own."""
