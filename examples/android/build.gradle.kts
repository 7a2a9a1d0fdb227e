// An app whose model is deployed by edgeq as a part of its build.
plugins {
    id("com.android.application") version "8.7.3"
    id("org.jetbrains.kotlin.android") version "2.1.0"
}

apply(from = "edgeq.gradle")

android {
    namespace = "com.example.vision"
    compileSdk = 35
    defaultConfig {
        applicationId = "com.example.vision"
        minSdk = 26
        // What the artefact was proven for.
        ndk { abiFilters += "arm64-v8a" }
    }
    sourceSets["main"].assets.srcDir(layout.buildDirectory.dir("generated/edgeq").get().asFile)
    // The runtime maps the file into memory as it lies in the package.
    androidResources { noCompress += "tflite" }
}

kotlin { jvmToolchain(17) }

// Ahead of all that reads assets.
tasks.named("preBuild") { dependsOn("edgeqAssets") }

dependencies {
    implementation("com.google.ai.edge.litert:litert:2.1.0")
}
